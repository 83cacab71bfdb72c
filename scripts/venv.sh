# Sourced by the other scripts: makes .venv in the project's root if there is none, installs the list given as the first
# argument if it has changed since, and leaves the interpreter's path in $python.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $1" >&2
    exit 1
}

python=.venv/bin/python
if ! [ -x "$python" ]; then
    base=${PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$base is not Python 3.10 or later; name one that is: PYTHON=/path/to/python3.12 bash $0"
    echo "making .venv with $("$base" --version)"
    "$base" -m venv .venv || { rm -rf .venv; fail "$base cannot make .venv; on Debian and Ubuntu: apt install python3-venv"; }
fi

# The newest CPU build of torch in the configured package index, or nothing: most indexes have none. Without an NVIDIA driver
# it does the same as the default build, of which three quarters are CUDA libraries. Older ones than the list allows do not count.
cpu_torch() {
    [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi > /dev/null || "$python" -c 'import torch' 2> /dev/null ||
        "$python" -m pip index versions torch --disable-pip-version-check 2> /dev/null |
        tr ', ' '\n\n' | grep '^[0-9.]*+cpu$' | sort -V | tail -n 1 |
        { read -r newest && printf '2.11\n%s\n' "$newest" | sort -V -C && echo "$newest"; }
}

requirements=$1
installed=.venv/$requirements.installed
if ! cat requirements*.txt | cmp -s - "$installed"; then
    cpu=$([ "$requirements" != requirements-demo.txt ] || cpu_torch || true)  # torchvision has no such build
    echo "installing $requirements into .venv, once${cpu:+, with torch $cpu, since this machine has no NVIDIA driver}:"
    "$python" -m pip install --disable-pip-version-check -r "$requirements" ${cpu:+"torch==$cpu"} ||
        fail "pip could not install $requirements; run the same command again"
    cat requirements*.txt > "$installed"
fi
