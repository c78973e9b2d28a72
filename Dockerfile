# The pinned environment with this project in it, in /opt/mmhcnet.
#
#     docker build -t mmhcnet .
#     docker build -t mmhcnet:cuda --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#         --build-arg FORCE_CUDA=1 .
#     docker run --rm -it [--gpus all] --shm-size 8g -v /path/to/data:/opt/mmhcnet/data mmhcnet
#
# A build sees no GPU, so that mmcv has to be told to compile its CUDA operators, and for which GPUs.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-dev python3-venv g++ make git ca-certificates \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mmhcnet
COPY . .

ARG FORCE_CUDA=0
ARG TORCH_CUDA_ARCH_LIST="7.0 7.5 8.0 8.6 8.9 9.0+PTX"
# pip keeps its downloads for as long as the set-up runs, which is what it needs them for.
RUN FORCE_CUDA=${FORCE_CUDA} TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST}" make env \
    && rm -rf ~/.cache

ENV PATH=/opt/mmhcnet/.venv/bin:$PATH OMP_WAIT_POLICY=PASSIVE
CMD ["bash"]
