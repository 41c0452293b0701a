# ./dev bench NAME: measures with a release build. Sourced by ./dev.

bench_main() {
    local name=${1:-}
    [[ -n $name && $name != -* ]] || die "say which: ./dev bench NAME [--quick], NAME one of migration, chaos, api, wan, ha"
    shift
    check_machine
    ensure_packages "$PACKAGES_RUN" "$PACKAGES_BUILD" "$PACKAGES_IMAGE"
    ensure_qemu
    STERNA_DEBUG="" ensure_binary
    ensure_tiny_image
    [[ $name != wan ]] || prepare_wan "$@"
    mkdir -p "$ROOT/target/bench"
    # The bench's own exit code is the answer: 0 when all bars hold, 3 when one does not.
    exec_as_root "$ROOT/target/release/sterna" lab bench "$name" --json "$ROOT/target/bench/$name.json" "$@"
}

# prepare_wan ARGUMENT...: what single rows need, unless another row alone is wanted.
prepare_wan() {
    local wanted=" $* "
    [[ $wanted == *" --row "* && $wanted != *" --row libvirt "* ]] || ensure_packages "$PACKAGES_BENCH_WAN"
    [[ $wanted == *" --row "* && $wanted != *" --row "@(sibling|sibling-used|postgres)" "* ]] || ensure_debian_image
}
