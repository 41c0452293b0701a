# ./dev test: everything that shows that Sterna works. Sourced by ./dev.

readonly SERIAL_PACKAGES="sterna-e2e sterna" # Real QEMU in the lab: one test at a time.

TESTS_PASSED=0
TESTS_FAILED=0

test_main() {
    local check
    [[ ${1:-} != --nightly ]] || export STERNA_NIGHTLY=1
    prepare_tests
    for check in "${LINT_CHECKS[@]}"; do run_check "$check"; done
    run_cargo_tests "the guest's workload" --manifest-path guest/workload/Cargo.toml --target-dir target/guest
    test_workspace
    report_sizes
    say ""
    say "$TESTS_PASSED passed, $TESTS_FAILED failed"
    ((TESTS_FAILED == 0))
}

prepare_tests() {
    check_machine
    ensure_packages "$PACKAGES_RUN" "$PACKAGES_BUILD" "$PACKAGES_IMAGE" "$PACKAGES_TEST"
    ensure_qemu_versions
    ensure_tiny_image
    step "Building sterna" cargo build --locked --bin sterna
    export STERNA_BIN="$ROOT/target/debug/sterna" STERNA_IMAGE_TINY="$IMAGES/tiny.qcow2"
    # Namespaces and QEMU under another user need root; the building does not.
    [[ $EUID -eq 0 ]] || export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo --preserve-env"
}

run_check() {
    if live "$1"; then TESTS_PASSED=$((TESTS_PASSED + 1)); else TESTS_FAILED=$((TESTS_FAILED + 1)); fi
}

# The quick ones first, so that a mistake shows early; then the end-to-end tests, one at a time.
test_workspace() {
    local package quick=(--workspace) serial=()
    for package in $SERIAL_PACKAGES; do
        has_package "$package" || continue
        quick+=(--exclude "$package")
        serial+=(-p "$package")
    done
    run_cargo_tests "the crates" --locked "${quick[@]}"
    ((${#serial[@]} == 0)) || SERIAL=1 run_cargo_tests "the whole, end to end" --locked "${serial[@]}"
}

has_package() { grep -qsx "name = \"$1\"" crates/*/Cargo.toml; }

# run_cargo_tests TEXT ARGUMENT...: counts what cargo's summaries say; a build that fails counts as one failure.
run_cargo_tests() {
    local text=$1 status=0 passed failed test_arguments=()
    shift
    [[ -z ${SERIAL:-} ]] || test_arguments+=(--test-threads=1)
    [[ -z ${STERNA_NIGHTLY:-} ]] || test_arguments+=(--include-ignored)
    say ""
    say "Testing $text"
    live cargo test --no-fail-fast "$@" -- "${test_arguments[@]}" || status=$?
    passed=$(sum_of passed)
    failed=$(sum_of failed)
    ((status == 0 || failed > 0)) || failed=1
    TESTS_PASSED=$((TESTS_PASSED + passed))
    TESTS_FAILED=$((TESTS_FAILED + failed))
}

# sum_of passed|failed: over all "test result:" lines of the last live command.
sum_of() {
    { grep -a '^test result:' "$LIVE_LOG" || true; } |
        awk -v word="$1" '{ for (i = 2; i <= NF; i++) if ($i == word ";") sum += $(i - 1) } END { print sum + 0 }'
}
