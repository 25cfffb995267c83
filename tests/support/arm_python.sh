#!/usr/bin/env bash
# A Python for 64-bit ARM Linux that qemu runs, with TVM's wheels and NumPy and nothing else: arm_python.sh FOLDER WHEELS
#
# FOLDER/python runs it, as the CPU that AWQ_TVM_ARM_CPU names. Needs a Debian or Ubuntu host (apt-get, dpkg), pip, and what
# `make arm-wheels` has put into WHEELS. Nothing is installed on the host: packages are only downloaded and unpacked.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: arm_python.sh FOLDER WHEELS" >&2; exit 2; }
[ -d "$2/tvm_ffi" ] || { echo "TVM for ARM is not in $2: make arm-wheels" >&2; exit 2; }
mkdir -p "$1"
folder=$(realpath "$1"); wheels=$(realpath "$2")
mkdir -p "$folder"/apt/{lists/partial,cache/archives/partial,conf} "$folder"/{debs,root,modules}
: >"$folder/apt/status"
echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main" \
    >"$folder/apt/sources.list"
apt() {
    apt-get -qq -o Dir::State="$folder/apt" -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt/cache" \
        -o Dir::Etc::sourcelist="$folder/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root "$@"
}
apt update
(
    cd "$folder/debs"
    apt download libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 liblzma5 libpython3.11-minimal \
        libpython3.11-stdlib libssl3 libstdc++6 libuuid1 python3.11-minimal zlib1g
)
for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder/root"; done
python3 -m pip install -qq --disable-pip-version-check --upgrade --target "$folder/modules" --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 --only-binary=:all: numpy typing_extensions
for name in tvm tvm_ffi; do ln -sfn "$wheels/$name" "$folder/modules/$name"; done
cat >"$folder/python" <<END
#!/bin/sh
# /proc/self/exe is qemu: Python is told where it is.
exec qemu-aarch64 -cpu "\${AWQ_TVM_ARM_CPU:-max}" -L "$folder/root" -E LD_LIBRARY_PATH= -E PYTHONHOME="$folder/root/usr" \\
    -E PYTHONPATH="$folder/modules" "$folder/root/usr/bin/python3.11" "\$@"
END
chmod +x "$folder/python"
"$folder/python" -c "import platform, tvm; print(platform.machine(), 'Python', platform.python_version(), 'with TVM', tvm.__version__)"
