# Sourced by the other scripts, from the repository's root: gives them .venv with this package installed.
#
# LONGCAT_TUNE_TORCH_INDEX   address of a package index to take torch from; PyTorch's site lists one for each
#                            CUDA version and one for the CPU

# Makes .venv if missing, installs the package with the given extras if pyproject.toml changed since the last
# time, and puts the environment's commands first on the PATH.
ensure_environment() {
    local extras=${1:-}
    local stamp=.venv/installed-${extras:-base} wanted
    if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
        make_environment
    fi
    wanted=$(cksum < pyproject.toml)
    if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
        echo "installing into .venv (a minute or more: torch is large)"
        install_torch
        pip_install --editable ".${extras:+[$extras]}"
        echo "$wanted" > "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

make_environment() {
    local python clear=
    python=$(find_python)
    # One whose Python is gone is made anew; one that only lacks pip keeps its packages.
    .venv/bin/python -c '' 2> /dev/null || clear=--clear
    echo "making .venv with $("$python" --version)"
    if ! "$python" -m venv $clear .venv; then
        echo "$python cannot make a virtual environment; Debian and Ubuntu have it in $python-venv" >&2
        return 1
    fi
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            echo "$name"
            return
        fi
    done
    echo "Python 3.11 or newer is needed and none is on the PATH; install it and run this again" >&2
    return 1
}

# torch by itself first, where the package's own dependency could bring gigabytes of CUDA for nothing.
install_torch() {
    local torch
    torch=$(.venv/bin/python - << 'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    dependencies = tomllib.load(file)["project"]["dependencies"]
print(next(line for line in dependencies if line.startswith("torch")))
PYTHON
    )
    if [ -n "${LONGCAT_TUNE_TORCH_INDEX:-}" ]; then
        pip_install --index-url "$LONGCAT_TUNE_TORCH_INDEX" "$torch"
    elif [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null; then
        if ! pip_install --no-index --no-deps "$torch" > /dev/null 2>&1; then
            echo "no NVIDIA GPU here and pip has no torch at hand: the usual build brings some GB of CUDA;"
            echo "to avoid that, stop and set LONGCAT_TUNE_TORCH_INDEX to PyTorch's index for the CPU"
        fi
    fi
}

# pip, with its progress where somebody watches.
pip_install() {
    local quiet=--quiet
    [ ! -t 1 ] || quiet=
    .venv/bin/python -m pip install --disable-pip-version-check $quiet "$@"
}
