"""Networks and network blocks."""
