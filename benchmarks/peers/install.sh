#!/bin/sh
# Install the peers that the benchmarks measure beside regraft, into .venv-peers: those of requirements.txt, and from the
# sources of llama-cpp-python also llama.cpp's own server, as .venv-peers/bin/llama-server.
# Arguments go to pip, such as an --extra-index-url with CPU-only builds of torch. llama.cpp is compiled for this
# machine, twice, which takes about half an hour on two cores, and needs a C++ compiler; pip brings CMake.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/../../.venv-peers"
"${PYTHON:-python3}" -m venv "$venv"
export CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF"
"$venv/bin/python" -m pip install --no-binary llama-cpp-python "$@" -r "$here/requirements.txt"
"$venv/bin/python" -c 'import llama_cpp; print(llama_cpp.llama_print_system_info().decode())'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pinned=$(grep '^llama-cpp-python==' "$here/requirements.txt")
"$venv/bin/python" -m pip download --no-deps --no-binary :all: -d "$work" "$pinned"
"$venv/bin/python" -m pip install "$@" cmake ninja
tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"
PATH="$venv/bin:$PATH"
cmake -S "$work"/llama_cpp_python-*/vendor/llama.cpp -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_TESTS=OFF
cmake --build "$work/build" --target llama-server
cp "$work/build/bin/llama-server" "$venv/bin/"
"$venv/bin/llama-server" --version
