#!/bin/bash
# Installs what the tests need and passes them all. From a clean clone on a fresh Debian machine:
#
#   tests/run            everything
#   tests/run --quick    without the demo (release build), the fuzz smoke and the virtual machines
#
# Steps go on after a failed one; the last lines name every step with its time, then the test runner's own summary.
# SEALBD_FUZZ_SECONDS (default 10) is the time per fuzz target.
set -uo pipefail
cd "$(dirname "$0")/.."
export SEALBD_REQUIRE_CLIENTS=1 CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} DEBIAN_FRONTEND=noninteractive
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"
export SEALBD_TEST_PEER=qemu-nbd
quick=
[ "${1-}" = --quick ] && quick=yes

packages=(qemu-utils libnbd-bin python3-libnbd nbdkit nbd-client nbd-server fio fuse3 e2fsprogs xfsprogs
    python3-cryptography xz-utils util-linux)
report=()
failed=0
started=$SECONDS

step() { # NAME COMMAND...
    local name=$1 begun=$SECONDS status=0
    shift
    printf '\n=== %s: %s\n' "$name" "$*"
    "$@" || status=$?
    local line
    printf -v line '%-10s %5d s  %s' "$name" $((SECONDS - begun)) "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")"
    echo "--- $line"
    report+=("$line")
    [ $status = 0 ] || failed=1
    return $status
}

packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && { echo "all ${#packages[@]} packages are installed"; return; }
    echo "missing: ${missing[*]}"
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    # --no-remove: a qemu-utils from backports is not to be replaced by way of a dependency.
    "${root[@]}" apt-get -qq update && "${root[@]}" apt-get -qq install -y --no-install-recommends --no-remove "${missing[@]}"
}

# Cargo's own tools are built from the registry once, without optimisation: building them is the cost, not running them.
tool() { # NAME
    command -v "$1" >/dev/null || cargo install --quiet --debug --locked "$1"
}
tools() {
    tool cargo-deny && { [ -n "$quick" ] || tool cargo-fuzz; }
}

portable() { cargo clippy --workspace --no-default-features --features portable -- -D warnings; }
documents() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps; }
demo() { cargo build --release && timeout 120 target/release/sealbd demo --check; }

summary_file=$(mktemp)
trap 'rm -f "$summary_file"' EXIT
all_tests() {
    local filter=()
    if command -v cargo-nextest >/dev/null; then
        [ -z "$quick" ] || filter=(-E 'not binary(nbd_kernel)')
        cargo nextest run --workspace "${filter[@]}" 2>&1 | tee "$summary_file"
    else
        # The same tests one binary after the other, all of them even when one fails.
        [ -z "$quick" ] || filter=(-- --skip kernel --skip virtual_machine)
        cargo test --workspace --no-fail-fast --lib --bins --tests "${filter[@]}" 2>&1 | tee "$summary_file"
    fi
}
runner_summary() {
    if grep -q '^ *Summary \[' "$summary_file"; then
        sed -n '/^ *Summary \[/,$p' "$summary_file"
    else
        awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
            END { printf "test result: %d passed; %d failed; %d ignored\n", passed, failed, ignored }' "$summary_file"
    fi
}

step packages packages
step tools tools
step fmt cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets -- -D warnings
step portable portable
step doc documents
if command -v cargo-deny >/dev/null; then
    # The graph is in the lock file; fetching makes the offline check possible on a fresh machine.
    step fetch cargo fetch --locked
    step deny cargo deny --offline check bans licenses sources
fi
step doctests cargo test --workspace --doc
step examples cargo build --workspace --examples
[ -n "$quick" ] || step vm tests/vm/build
[ -n "$quick" ] || step fuzz tests/fuzz_smoke "${SEALBD_FUZZ_SECONDS:-10}"
[ -n "$quick" ] || step demo demo
step tests all_tests

printf '\n=== steps\n'
printf '%s\n' "${report[@]}"
printf 'total      %5d s  %s\n\n' $((SECONDS - started)) "$([ $failed = 0 ] && echo ok || echo FAILED)"
runner_summary
exit $failed
