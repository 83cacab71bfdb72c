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
    "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
        fail "$base is not Python 3.10, 3.11 or 3.12; name one that is: PYTHON=/path/to/python3.11 bash $0"
    "$base" -m venv .venv || { rm -rf .venv; fail "$base cannot make .venv; on Debian and Ubuntu: apt install python3-venv"; }
fi

requirements=$1
installed=.venv/$requirements.installed
if ! cat requirements*.txt | cmp -s - "$installed"; then
    echo "installing $requirements into .venv (a few minutes, once)"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" ||
        fail "pip could not install $requirements; look at its message above, then run the same command again"
    cat requirements*.txt > "$installed"
fi
