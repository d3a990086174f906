# docker build -t pefttools .                                     # CPU; give torch's index of CPU wheels as INDEX
# docker build -t pefttools --build-arg BASE=IMAGE_WITH_CUDA_AND_PYTHON --build-arg INDEX= .
# docker run -v $PWD:/work pefttools train question-type-lora
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG INDEX=
WORKDIR /opt/pefttools
COPY . .
RUN pip install --no-cache-dir ${INDEX:+--extra-index-url ${INDEX}} -c constraints.txt torch \
    && pip install --no-cache-dir -c constraints.txt '.[all]'
WORKDIR /work
ENTRYPOINT ["pefttools"]
CMD ["--help"]
