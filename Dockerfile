# The worker's image. Where images can be pulled, the program is compiled here:
#
#   docker build -t image-builder .
#
# Elsewhere it is compiled beforehand, on the machine itself, and copied from target/image:
#
#   docker build -t image-builder --build-arg BINARY=prebuilt .
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim
ARG BINARY=compiled

FROM ${RUST_IMAGE} AS compiled
WORKDIR /src
COPY . .
# What is compiled once is kept between builds, outside of any layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin image-builder \
 && cp target/release/image-builder /image-builder

FROM scratch AS prebuilt
COPY target/image/image-builder /image-builder

FROM ${BINARY} AS binary

FROM ${BASE_IMAGE}
RUN if [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then \
        apt-get update \
     && apt-get install -y --no-install-recommends ca-certificates \
     && rm -rf /var/lib/apt/lists/*; \
    fi \
 && useradd --uid 10001 --user-group --home-dir /data --shell /usr/sbin/nologin image-builder \
 && install -d -o image-builder -g image-builder -m 750 /data
COPY --from=binary --chmod=755 /image-builder /usr/local/bin/image-builder
# A binary that was compiled against a newer C library fails here, and not in a restart loop.
RUN image-builder --version

# The engine's socket belongs to a group of the host: add it with --group-add.
USER image-builder
WORKDIR /data
ENV DATA_DIR=/data
VOLUME /data
# Nobody outside the container reaches the default, HTTP_ADDR=127.0.0.1:8080. To publish the port from a
# network of the container's own, set HTTP_ADDR=0.0.0.0:8080; with --network host that would open it to
# everybody who reaches the machine.
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["image-builder", "health"]
# The first SIGTERM drains; give it DRAIN_TIMEOUT and at least 20 s more.
STOPSIGNAL SIGTERM
ENTRYPOINT ["image-builder"]
CMD ["serve"]
