"""The command ``ssmctb`` as ``python -m ssmctb_monai``."""

from ssmctb_monai.cli import main

if __name__ == "__main__":
    main(prog_name="ssmctb")
