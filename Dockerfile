# docker build -t bdjax .                         for a CPU
# docker build -t bdjax --build-arg EXTRAS=cuda . for NVIDIA GPUs (--gpus=all)
# docker run --rm -v "$PWD:/work" bdjax ban       leaves its results in ./runs
FROM python:3.12-slim
ARG EXTRAS=""
WORKDIR /src
COPY setup.py pyproject.toml requirements.txt constraints.txt README.md LICENSE ./
COPY bdjax bdjax
COPY experiments experiments
# jax's CUDA packages bring CUDA with them; the driver is the host's.
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"
WORKDIR /work
ENTRYPOINT ["bdjax"]
