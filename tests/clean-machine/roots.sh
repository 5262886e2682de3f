# Sourced by the scripts beside it: fresh Debian roots, each a chroot made by mmdebstrap and kept in the cache. What is done
# in a root goes into an overlay and is thrown away. `cache`, `failures` and `steps` are the caller's.
# shellcheck shell=bash

say() { printf '%(%H:%M:%S)T %s\n' -1 "$*"; }
die() { printf 'clean-machine: %s\n' "$2" >&2; exit "$1"; }

require_root() {
    local program
    [ "$(id -u)" = 0 ] || die 3 "run as root: mounts and chroot need it"
    for program in mmdebstrap unshare git; do
        command -v $program >/dev/null || die 3 "no $program: apt-get install mmdebstrap util-linux git"
    done
}

# In a mount namespace of our own: however the script ends, no mount outlives it.
in_own_namespace() { # SCRIPT ARGUMENTS...
    [ -n "${VFTRACE_CLEAN_MACHINE:-}" ] || VFTRACE_CLEAN_MACHINE=1 exec unshare --mount --propagation private "$@"
}

lock_cache() {
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock -n 9 || { say "another run is using $cache, waiting for it" && flock -w 900 9; } || die 1 "it goes on"
}

# What a root has beside the essential packages: `SUITE` is a bare machine, `SUITE-ready` has what vftrace's package depends
# on, so that installing it takes no download, and the first one what builds packages.
packages_of() { # NAME
    local bare=ca-certificates,git,make
    local depends=python3-bcrypt,python3-bpfcc,python3-h11,python3-prometheus-client,python3-rich,python3-yaml,systemd
    case $1 in
        bookworm-ready) echo "$bare,$depends,build-essential,debhelper,dh-python,lintian" ;;
        *-ready) echo "$bare,$depends,python3-msgspec" ;;
        *) echo "$bare" ;;
    esac
}

# Where a root lies in the cache: another list of packages is another root.
place_of() { # NAME
    echo "$cache/$1-$(packages_of "$1" | sha256sum | cut -c1-8)"
}

make_root() { # NAME: a directory in the cache, which nothing changes afterwards
    local sources codename file suite=${1%-ready}
    sources=$(mktemp -d)
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        [ ! -s "$file" ] || sed "s/\b$codename\b/$suite/g" "$file" >"$sources/${file##*/}"
    done
    apt-config dump | grep '^Acquire' >"$sources/apt.conf"
    say "$1: making the root (once; about a minute)"
    # Older ones of this name, too.
    rm -rf --one-file-system "$cache/$1.new" "$cache/$1.tar" "$cache/$1-"????????
    mmdebstrap --quiet --variant=minbase --format=directory --include="$(packages_of "$1")" \
        --aptopt="$sources/apt.conf" "$suite" "$cache/$1.new" "$sources"/*.{list,sources}
    mv "$cache/$1.new" "$(place_of "$1")"
    rm -r "$sources"
}

# The places on this machine that pip's configuration points into.
pip_directories() {
    {
        grep -shv "^#" /etc/pip.conf ~/.config/pip/pip.conf ~/.pip/pip.conf || true
        env | grep "^PIP_" || true
    } |
        grep -oE '(^|[ =]|file://)/[^ ]+' |
        sed 's/^[ =]*//; s,^file://,,; s,/simple/*$,,' |
        sort -u || true
}

furnish() { # ROOT: kernel file systems, network names, certificates, pip's configuration
    local root=$1 file directory
    for directory in /proc /sys /dev; do
        mount --rbind $directory "$root$directory"
    done
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    find /usr/local/share/ca-certificates -name '*.crt' \
        -exec cp -Lt "$root/usr/local/share/ca-certificates" {} +
    chroot "$root" update-ca-certificates >/dev/null 2>&1
    for file in /etc/pip.conf ~/.config/pip/pip.conf ~/.pip/pip.conf; do
        [ ! -e "$file" ] || install -D -m 644 "$file" "$root/${file/#$HOME//root}"
    done
    pip_directories | while read -r directory; do
        [ -d "$directory" ] || continue
        mkdir -p "$root$directory"
        mount --bind -o ro "$directory" "$root$directory"
    done
}

# Processes that live in a root, which nothing of ours should once its steps are over.
living_in() { # ROOT
    local process
    for process in /proc/[0-9]*; do
        case $(readlink "$process/root" || true) in "$1" | "$1"/*) echo "${process#/proc/}" ;; esac
    done 2>/dev/null
}

clear_away() { # ROOT
    local mounted
    # shellcheck disable=SC2046 # one word per process
    [ -z "$(living_in "$1")" ] || kill -9 $(living_in "$1") || true
    for mounted in $(findmnt -rno TARGET | grep -E "^$1(/|$)" | sort -r); do
        umount -l "$mounted"
    done
    # Were a mount left in spite of that, it would not be descended into.
    rm -rf --one-file-system "$1" "$1.changes"
}

inside() { # ROOT COMMAND...: as root of that machine, in the clone, with little of our environment
    local root=$1
    shift
    # shellcheck disable=SC2046 # variables of this kind hold no blanks
    env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LANG=C.UTF-8 \
        $(env | grep -iE '^(PIP_[A-Z_]+|SSL_CERT_[A-Z]+|REQUESTS_CA_BUNDLE|[a-z]+_proxy)=[^ ]*$') \
        chroot "$root" sh -c 'cd /root/vftrace && exec "$@"' sh "$@" </dev/null
}

step() { # SUITE LINES COMMAND...: run it inside, show its last lines, keep all of it in a log
    local suite=$1 lines=$2 log began=${EPOCHREALTIME/./} code=0 took
    shift 2
    log="$cache/$suite-$((++steps)).log"
    say "$suite: $*"
    inside "$cache/$suite.root" "$@" >"$log" 2>&1 || code=$?
    took=$(((${EPOCHREALTIME/./} - began) / 1000))
    [ $code = 0 ] || lines=60
    tail -n "$lines" "$log" | sed 's/^/    /'
    if [ $code = 0 ]; then
        say "$suite: $* took $took ms"
    else
        say "$suite: $* FAILED with $code after $took ms; all of it: $log"
        failures=$((failures + 1))
        return 1
    fi
    last_ms=$took
}

fresh_root() { # NAME: what is changed in it is thrown away; give it what it needs to install packages
    local root="$cache/$1.root" base
    base=$(place_of "$1")
    [ -d "$base" ] || make_root "$1"
    clear_away "$root"
    mkdir -p "$root" "$root.changes/upper" "$root.changes/work"
    mount -t overlay overlay "$root" \
        -o "lowerdir=$base,upperdir=$root.changes/upper,workdir=$root.changes/work"
    furnish "$root"
}
