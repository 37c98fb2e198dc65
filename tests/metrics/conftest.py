from __future__ import annotations

import pytest
from metric_checks import in_two_processes


@pytest.fixture(scope="session")
def of_processes(tmp_path_factory):
    """What each of two processes returns, for both files that ask: to start them takes longer than most tests."""
    from test_anomaly_metric import metrics_of_a_process
    from test_evaluation import gathered

    return in_two_processes((gathered, metrics_of_a_process), tmp_path_factory.mktemp("processes"))
