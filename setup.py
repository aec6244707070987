"""Packaging of llm-interpret; tool settings are in pyproject.toml.

The distribution is called llm-interpret because another library already installs an import package called
interpret: see "Package name conflict" in docs/start/install.md.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
CITATION = dict(re.findall(r"^([a-z-]+): (\S+)$", (HERE / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE))
VERSION, REPOSITORY = CITATION["version"], CITATION["repository-code"]
"""The version, and the address of the repository; both stand in CITATION.cff alone."""


def package_page() -> str:
    """Return the README with absolute links, to the files of this version: a package page has no files beside it."""
    text = HERE.joinpath("README.md").read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/v{VERSION}/", text)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/v{VERSION}/", text)


class BuildWithExamples(build_py):
    """Also copies the examples and the notebook into the package; a clone keeps them at its top."""

    def run(self) -> None:
        """Build the packages; an editable installation finds the files in the clone (interpret/examples/files.py)."""
        super().run()
        if not self.editable_mode:
            for file in [*HERE.glob("examples/*"), *HERE.glob("scripts/*.ipynb")]:
                shutil.copy(file, Path(self.build_lib, "interpret", "examples"))


setup(
    name="llm-interpret",
    version=VERSION,
    description="Read and edit the hidden states of Hugging Face language models; the weights stay untouched.",
    long_description=package_page(),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    license="Apache-2.0",
    python_requires=">=3.11",
    # transformers_files is installed beside install_patch.py, so that the command interpret-patch finds it.
    packages=[
        *find_packages(include=["interpret*"]),
        *find_namespace_packages(include=["transformers_files*"], exclude=["*.__pycache__"]),
    ],
    package_data={
        "": ["*.pyi"],  # the public names of each package; interpret.lazy reads them at run time
        "interpret": ["py.typed"],
        "interpret.display": ["*.html", "*.css", "*.js"],
        "interpret.factpages": ["*.html", "*.css", "*.js"],
        "interpret.pages": ["*.html", "*.css", "*.js"],
    },
    py_modules=["install_patch"],
    cmdclass={"build_py": BuildWithExamples},
    # No upper bounds, so that pip never moves a package that the user has; a release of transformers that does not
    # work is refused at run time. docs/architecture.md gives the reason for each lower bound.
    install_requires=[
        "transformers>=4.34.0",
        "torch>=2.4",
        "filelock",
        "gguf>=0.17",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "mpmath>=1.3",
        "numpy>=1.26",
        "pandas>=2.2",
        "psutil>=5.9",
        "pyyaml>=6",
        "rich>=13",
        "safetensors",
        "typer>=0.15",
    ],
    extras_require={
        "accelerate": ["accelerate>=0.31"],
        "bitsandbytes": ["bitsandbytes>=0.50"],
        "cluster": ["ray>=2.60,<3"],
        "docs": ["furo", "myst-nb>=1.4", "sphinx>=8"],
        "peft": ["peft>=0.10"],
        "sentencepiece": ["sentencepiece>=0.2", "protobuf>=4.25"],
        # The releases that go with the patch of transformers 4.34.0; its tokenizers have no wheels for Python 3.13.
        "patch": [
            f"{requirement}; python_version < '3.13'"
            for requirement in (
                "transformers==4.34.0",
                "tokenizers>=0.14.1,<0.15",
                "huggingface-hub>=0.17.3,<0.18",
                "accelerate==0.31.0",
                "bitsandbytes>=0.50,<0.51",
                "peft>=0.10,<0.11",
                "sentencepiece>=0.2,<0.3",
                "protobuf>=4.25",
            )
        ],
        "test": [
            "captum>=0.9,<0.10",
            "hypothesis>=6.100,<7",
            "ipykernel>=6.29,<8",
            "mypy>=1.13,<3",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.8,<1",
            "scipy>=1.14,<2",
            "selenium>=4.20,<5",
            "setuptools>=70.1",
        ],
    },
    entry_points={
        "console_scripts": [
            "interpret=interpret.cli:main",
            "interpret-patch=install_patch:main",
        ],
    },
)
