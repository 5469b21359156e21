#!/usr/bin/env bash
# Builds the static binary and the context of the image, and the image where there is a tool for it:
#
#   bash deploy/container/build.sh [IMAGE]     default: shardwalker:dev
#
# Needs the Rust target (rustup target add x86_64-unknown-linux-musl), a C compiler for it (musl-tools), and the
# certificates of this machine (ca-certificates). Without docker, podman or buildah it stops after the context,
# target/image, with exit code 0 and says so.
set -euo pipefail
cd "$(dirname "$0")/../.."
image=${1:-shardwalker:dev}
target=${TARGET:-$(uname -m)-unknown-linux-musl}
context=target/image

cargo build --locked --release --no-default-features --target "$target"
rm -rf "$context"
mkdir -p "$context"
cp "target/$target/release/shardwalker" "$context/shardwalker"
strip "$context/shardwalker"
cp /etc/ssl/certs/ca-certificates.crt "$context/ca-certificates.crt"

# Static: nothing is loaded when it starts.
if readelf --program-headers "$context/shardwalker" | grep --quiet INTERP; then
  echo "the binary is not static" >&2
  exit 1
fi
du --bytes --total "$context"/*

# The first that can build; docker's client alone cannot.
if command -v docker > /dev/null && docker info > /dev/null 2>&1; then
  docker build --file deploy/container/Dockerfile --tag "$image" "$context"
elif command -v podman > /dev/null; then
  podman build --file deploy/container/Dockerfile --tag "$image" "$context"
elif command -v buildah > /dev/null; then
  buildah --storage-driver vfs bud --isolation chroot --format docker --file deploy/container/Dockerfile \
    --tag "$image" "$context"
else
  echo "NOT BUILT: no docker, podman or buildah here; the context is $context"
fi
