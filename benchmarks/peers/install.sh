#!/bin/sh
# Install the peers that benchmarks/engine.py measures beside regraft, into .venv-peers.
# Arguments go to pip, such as an --extra-index-url with CPU-only builds of torch. llama.cpp is compiled for this
# machine, which takes about a quarter of an hour on two cores, and needs a C++ compiler; pip brings CMake.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/../../.venv-peers"
"${PYTHON:-python3}" -m venv "$venv"
export CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DLLAVA_BUILD=OFF"
"$venv/bin/python" -m pip install --no-binary llama-cpp-python "$@" -r "$here/requirements.txt"
"$venv/bin/python" -c 'import llama_cpp; print(llama_cpp.llama_print_system_info().decode())'
