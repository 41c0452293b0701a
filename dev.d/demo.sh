# ./dev demo: from nothing to a virtual server that moves while it serves, or outlives its host. Sourced by ./dev.

demo_main() {
    local yes="" arguments=() argument
    for argument in "$@"; do
        case $argument in
            --yes | -y) yes=1 ;;
            *) arguments+=("$argument") ;;
        esac
    done
    check_machine
    case " ${arguments[*]} " in
        *" wan "*) announce_demo "while it moves from one datacentre to another" ;;
        *" ha "*) announce_demo "until its host is killed, and again from another" ;;
        *) announce_demo "while it moves from one host to another" ;;
    esac
    [[ -n $yes ]] || confirm_demo
    ensure_packages "$PACKAGES_RUN" "$PACKAGES_BUILD" "$PACKAGES_IMAGE"
    ensure_qemu
    ensure_binary
    ensure_tiny_image
    exec_as_root "$(sterna_binary)" lab demo "${arguments[@]}"
}

# announce_demo WHAT: what happens to the server.
announce_demo() {
    local missing
    mapfile -t missing < <(missing_for_demo)
    say "Sterna demo: a virtual server answers requests $1."
    say ""
    say "It installs   ${#missing[@]} Debian packages that are missing${missing[*]:+:}"
    for package in "${missing[@]}"; do say "                ${package/|/: }"; done
    say_backports
    say "It changes    nothing outside $ROOT but network namespaces, bridges and files of its lab (in /var/lib/sterna-lab)"
    say "It needs      $MEMORY_MIN_MIB MiB of memory, $DISK_MIN_MIB MiB of disk, $(minutes_for_demo)"
    say "Undo          $(undo_of_demo)"
    say ""
}

missing_for_demo() {
    missing_packages "$PACKAGES_RUN" "$PACKAGES_BUILD" "$PACKAGES_IMAGE"
    qemu_is_recent || is_installed qemu-system-x86 || printf 'qemu-system-x86|QEMU itself, which runs the guests\n'
    is_installed qemu-utils || printf 'qemu-utils|qemu-img: disk images\n'
}

say_backports() {
    if [[ $(codename) != bookworm ]] || qemu_is_recent; then return; fi
    say "              QEMU 10 from bookworm-backports: adds $BACKPORTS_FILE"
}

minutes_for_demo() {
    if [[ -x $(sterna_binary) && -s $IMAGES/tiny.qcow2 ]]; then
        printf 'about a minute'
    else
        printf 'about 10 minutes with two CPUs (most of it is building; the next time takes a minute)'
    fi
}

undo_of_demo() {
    printf 'target/release/sterna lab down; rm -rf target; apt-get remove what target/dev/installed-packages lists'
    [[ $(codename) != bookworm ]] || printf ';\n              rm -f %s && apt-get update' "$BACKPORTS_FILE"
}

confirm_demo() {
    local answer
    if [[ ! -t 0 ]]; then
        say "Nobody is at a terminal to be asked: say --yes to go on."
        exit 2
    fi
    read -r -p "Go on? [Y/n] " answer
    case $answer in
        "" | y | Y | yes | Yes) ;;
        *)
            say "Nothing was done."
            exit 2
            ;;
    esac
}
