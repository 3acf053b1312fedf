# Sourced by ops/demo, ops/test and ops/check: makes .venv with the tested versions and one extra.
# Usage: . ops/venv.sh EXTRA. Installs only if pyproject.toml, the constraints or the extra have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=$1
python=${STOKER_PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Stoker needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set STOKER_PYTHON." >&2
        exit 2
    }
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
stamp=.venv/.stoker-$extra
wanted=$(cat pyproject.toml ops/constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing stoker[$extra] and its dependencies (once; some minutes)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c ops/constraints.txt -e ".[$extra]"
    printf '%s' "$wanted" >"$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"
