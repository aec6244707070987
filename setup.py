"""Packaging of llm-interpret; tool settings are in pyproject.toml.

The distribution is called llm-interpret because another library already installs an import package called
interpret: see "Package name conflict" in README.md.
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="llm-interpret",
    version="0.1.0",
    description="Read and edit the hidden states of Hugging Face language models; the weights stay untouched.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # transformers_files is installed beside install_patch.py, so that the command interpret-patch finds it.
    packages=[
        *find_packages(include=["interpret", "interpret.*"]),
        "transformers_files.generation",
        "transformers_files.models.llama",
    ],
    package_data={
        "": ["*.pyi"],  # the public names of each package; interpret.lazy reads them at run time
        "interpret": ["py.typed"],
        "interpret.attribution.result": ["*.html", "*.css", "*.js"],
        "interpret.pages": ["*.html", "*.css", "*.js"],
    },
    py_modules=["install_patch"],
    # Versions known to work together; docs/architecture.md gives the reason for each bound.
    install_requires=[
        "transformers==4.34.0",
        "tokenizers>=0.14.1,<0.15",
        "huggingface-hub>=0.17.3,<0.18",
        "torch>=2.4,<=2.13.0",
        "accelerate==0.31.0",
        "bitsandbytes>=0.50,<0.51",
        "safetensors<1",
        "sentencepiece>=0.2,<0.3",
        "protobuf>=4.25,<8",
        "numpy>=2.0.2,<3",
        "pandas>=3,<4",
        "gguf>=0.17,<1",
        "jinja2>=3.1,<4",
        "matplotlib>=3.9,<4",
        "mpmath>=1.3,<2",
        "pyyaml>=6,<7",
        "rich>=13,<16",
        "typer>=0.15,<1",
    ],
    extras_require={
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
        ],
    },
    entry_points={
        "console_scripts": [
            "interpret=interpret.cli:main",
            "interpret-patch=install_patch:main",
        ],
    },
)
