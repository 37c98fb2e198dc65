"""What pyproject.toml cannot say: the bundles, which lie at the root of the repository, are data of the package."""

from setuptools import find_packages, setup

BUNDLES = {f"ssmctb_monai.bundles.{name}": f"bundles/{name}" for name in ("brats2d", "brats3d")}
OF_A_BUNDLE = ["LICENSE", "*.json", "logging.conf", "configs/*", "docs/*", "models/model*.pt", "models/model*.json"]
OF_THE_PACKAGE = ["py.typed", "*.pyi", "reports/*.j2", "reports/*.schema.json", "visualize/*.css", "visualize/*.js"]

setup(
    packages=[*find_packages(include=["ssmctb_monai*"]), *BUNDLES],
    package_dir=BUNDLES,
    package_data={"ssmctb_monai": OF_THE_PACKAGE, **dict.fromkeys(BUNDLES, OF_A_BUNDLE)},
)
