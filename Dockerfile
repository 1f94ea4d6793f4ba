# kdcache in a container. The image was never built as a whole: its RUN lines were run by hand, in a fresh Debian with Python 3.13.
#
#   docker build --tag kdcache .
#   docker run --rm --shm-size 2g --volume "$PWD:/work" kdcache student-train --aug cutmix-pick
#
# With CUDA: docker build --build-arg PIP_EXTRA_INDEX_URL= ..., and docker run --gpus all ...
# Run folders come to /work, which must be writable for user 1000, or for that of docker run --user. There is no compiler for --compile.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:${PYTHON}-slim
# Where PyTorch without CUDA comes from; pip prefers "+cpu" to the same version of PyPI.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl
RUN useradd --uid 1000 --create-home kdcache && install --directory --owner kdcache /work
USER kdcache
WORKDIR /work
ENTRYPOINT ["kdcache"]
CMD ["--help"]
