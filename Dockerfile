# Images of agentlace:
#
#   docker build --target core -t agentlace .               the command, the dashboard
#   docker build --target recorder -t agentlace-recorder .  and datasets of episodes
#   docker build -t agentlace-trainer .                     and JAX, Gymnasium and the examples
#
# A trainer on a GPU: --build-arg EXTRA_PACKAGES='jax[cuda12]'. Versions are those of
# constraints/, which the tests run with; PYTHON is one of those there.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
ARG PYTHON
WORKDIR /src
# For the compiled part; it is only needed here.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY constraints constraints
COPY broker broker
COPY agentlace agentlace
ENV PIP_CONSTRAINT=/src/constraints/py${PYTHON}.txt PIP_BUILD_CONSTRAINT=/src/constraints/py${PYTHON}.txt
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS core
ARG PYTHON
COPY constraints/py${PYTHON}.txt /opt/agentlace/constraints.txt
COPY --from=wheel /wheels /opt/agentlace/wheels
RUN pip install --no-cache-dir --constraint /opt/agentlace/constraints.txt \
    "$(echo /opt/agentlace/wheels/*.whl)[cli,metrics,web]"
# Anybody's home, whatever user the container is told to run as.
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
RUN useradd --uid 1000 --home-dir /tmp --no-create-home agentlace && chown agentlace /work
USER agentlace
ENTRYPOINT ["agentlace"]
CMD ["--help"]

FROM core AS recorder
USER root
RUN pip install --no-cache-dir --constraint /opt/agentlace/constraints.txt \
    "$(echo /opt/agentlace/wheels/*.whl)[rlds]"
USER agentlace

FROM recorder AS trainer
ARG EXTRA_PACKAGES=""
USER root
RUN pip install --no-cache-dir --constraint /opt/agentlace/constraints.txt \
    "$(echo /opt/agentlace/wheels/*.whl)[compress,examples,tensorboard]" $EXTRA_PACKAGES
COPY examples /opt/agentlace/examples
# A volume takes this directory's mode over, whatever user writes into it.
RUN mkdir --mode=1777 /runs
USER agentlace
ENTRYPOINT ["python"]
CMD ["/opt/agentlace/examples/async_learner_actor.py", "--help"]
