# Build:  docker build -t nemo_longpo .
#         docker build -t nemo_longpo:bridge --build-arg BASE=nvcr.io/nvidia/nemo:26.08 .
# Run:    docker run --gpus all --ipc=host --user "$(id -u):$(id -g)" \
#             -v "$PWD/data:/workspace/data" nemo_longpo nemo llm finetune --help
#         docker run … nemo_longpo:bridge torchrun --nproc-per-node=8 -m nemo_longpo.bridge.train --help

# 25.11 has NeMo 2.6 and Megatron-Core 0.15, 26.02 NeMo 2.7 and 0.16; no later image has `nemo llm`. 26.08 has
# Megatron-Bridge 0.6 and Megatron-Core 0.19. 26.04 fits neither way: its Megatron-Bridge is 0.4.
ARG BASE=nvcr.io/nvidia/nemo:25.11
FROM ${BASE}

# Only what gets installed, so that a change of tests or documentation does not rebuild the layer.
COPY pyproject.toml README.md requirements/eval.txt /opt/nemo_longpo/
COPY nemo_longpo /opt/nemo_longpo/nemo_longpo
COPY recipes /opt/nemo_longpo/recipes
COPY conversion /opt/nemo_longpo/conversion
COPY data_tools /opt/nemo_longpo/data_tools

# Ends the build with a sentence when the image does not fit, before anything is put into it. Versions are checked here,
# the GPU when a container starts.
RUN cd /opt/nemo_longpo && python -m nemo_longpo.doctor

# --no-deps: the image's torch, Transformer Engine and trainer are built for each other, and everything else that the
# plugin imports comes with them. --no-build-isolation: setuptools is there, so the build needs no network.
# `python -m pip` installs into whichever environment the image puts first on PATH.
# eval.txt is lm-evaluation-harness and what it imports, for `longpo eval`.
RUN python -m pip install --no-deps --no-build-isolation --no-cache-dir /opt/nemo_longpo \
    && python -m pip install --no-deps --no-cache-dir -r /opt/nemo_longpo/eval.txt \
    && longpo --version

# Writable for any --user. NeMo, Hugging Face and Triton keep caches under HOME, and an arbitrary user has none.
RUN install -d -m 1777 /workspace/home /workspace/data
ENV HOME=/workspace/home
WORKDIR /workspace
