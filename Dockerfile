# Build:  docker build -t nemo_longpo .
# Run:    docker run --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#             -v "$PWD/data:/workspace/data" nemo_longpo nemo llm finetune --help

# The newest NGC image whose NeMo (2.6.0) and Megatron-Core (0.15) fit each other and have `nemo llm`; 26.02 brings
# Megatron-Core 0.16, and images from 26.04 on have no `nemo llm`.
ARG BASE=nvcr.io/nvidia/nemo:25.11
FROM ${BASE}

# Only what gets installed, so that a change of tests or documentation does not rebuild the layer.
COPY pyproject.toml README.md requirements/eval.txt /opt/nemo_longpo/
COPY nemo_longpo /opt/nemo_longpo/nemo_longpo
COPY recipes /opt/nemo_longpo/recipes
COPY conversion /opt/nemo_longpo/conversion
COPY data_tools /opt/nemo_longpo/data_tools

# --no-deps: the image's torch, Transformer Engine and NeMo are built for each other, and everything else that the
# plugin imports comes with them. --no-build-isolation: setuptools is there, so the build needs no network.
# `python -m pip` installs into whichever environment the image puts first on PATH.
# eval.txt is lm-evaluation-harness and what it imports, for `longpo eval`.
RUN python -m pip install --no-deps --no-build-isolation --no-cache-dir /opt/nemo_longpo \
    && python -m pip install --no-deps --no-cache-dir -r /opt/nemo_longpo/eval.txt

# Fails the build when the base image does not fit: versions are checked here, the GPU when a container starts.
RUN longpo doctor

# Writable for any --user. NeMo, Hugging Face and Triton keep caches under HOME, and an arbitrary user has none.
RUN install -d -m 1777 /workspace/home /workspace/data
ENV HOME=/workspace/home
WORKDIR /workspace
