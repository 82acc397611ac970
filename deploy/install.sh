#!/bin/sh
# Installs modeld from the folder that this script lies in, asks nothing, and needs no network. POSIX sh and coreutils suffice.
#
# First each file is compared with SHA256SUMS; a bundle that is not as it was packed is refused before anything is touched. What
# is installed is the copy that was compared, so a stick that reads differently the second time does no harm.
#
# On Debian and its kin (12 or later) the package is installed by dpkg, elsewhere, or where the package's python3-yaml is missing,
# the one file bin/modeld with the unit. A later run upgrades, by the way taken first, and leaves the configuration as it is.

set -eu
LC_ALL=C
export LC_ALL
umask 022

usage() {
    cat <<'END'
usage: install.sh [install] [--prefix DIR] [--no-dpkg] [--no-start] [--python PATH]
       install.sh verify
       install.sh uninstall [--prefix DIR] [--purge]

install     (what happens without a word) verifies, then installs or upgrades
verify      compares the bundle with SHA256SUMS and changes nothing
uninstall   removes what was installed; configuration and state stay, unless --purge is given

--prefix DIR   install below DIR alone: program, pages, configuration (DIR/etc/modeld) and unit (not enabled). Needs no root.
               Without it: the Debian package, or /usr/local with /etc/modeld and an enabled unit; needs root.
--no-dpkg      install the one file even where dpkg could install the package
--no-start     neither start nor restart the service
--python PATH  the Python that the unit runs the one file with (default: python3)

Exit status: 0 done, 1 refused or failed, 2 usage.
END
}

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
wrong() { printf 'install.sh: %s; --help tells what there is\n' "$*" >&2; exit 2; }
have() { command -v "$1" > /dev/null 2>&1; }
booted() { [ -d /run/systemd/system ] && have systemctl; }

action=install prefix='' own_prefix='' use_dpkg=yes start=yes purge='' python=python3
while [ $# -gt 0 ]; do
    case $1 in
        install | verify | uninstall) action=$1 ;;
        --prefix | --python)
            [ $# -ge 2 ] || wrong "$1 needs a value"
            if [ "$1" = --prefix ]; then prefix=$2; else python=$2; fi
            shift
            ;;
        --prefix=*) prefix=${1#*=} ;;
        --python=*) python=${1#*=} ;;
        --no-dpkg) use_dpkg= ;;
        --no-start) start= ;;
        --purge) purge=yes ;;
        -h | --help) usage; exit 0 ;;
        *) wrong "$1 is not known" ;;
    esac
    shift
done
if [ -n "$prefix" ]; then
    case $prefix in
        /*) ;;
        *) prefix=$(pwd)/$prefix ;;
    esac
    prefix=${prefix%/}
    [ -n "$prefix" ] || wrong "--prefix / is the system itself"
    case $prefix in *[!A-Za-z0-9._+/@=-]*) wrong "--prefix $prefix has characters that a unit and a configuration would misread" ;; esac
    own_prefix=yes
fi
case $prefix in
    '' | /usr/local) own_prefix='' prefix=/usr/local config=/etc/modeld/models.yaml unit=/etc/systemd/system/modeld.service ;;
    *) config=$prefix/etc/modeld/models.yaml unit=$prefix/lib/systemd/system/modeld.service ;;
esac
manifest=$prefix/share/modeld/installed

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
stage='' unfinished=''
trap '[ -z "$stage" ] || rm -rf -- "$stage"; [ -z "$unfinished" ] || rm -f -- "$unfinished"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# -- is it what was packed? ----------------------------------------------------------------------------------------------

refuse() { die "this bundle is not what was packed: $*. Nothing was installed; get it again, and compare the archive's digest"; }

# walk FOLDER TOP: the names of all files below, relative to TOP. Refuses what is neither a file nor a folder, and odd names.
walk() {
    for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
        [ -e "$entry" ] || [ -L "$entry" ] || continue # a pattern that found nothing
        name=${entry#"$2"/}
        case $name in *[!A-Za-z0-9._+/-]*) refuse "a file has a name with odd characters" ;; esac
        if [ -L "$entry" ]; then
            refuse "$name is a symbolic link"
        elif [ -d "$entry" ]; then
            walk "$entry" "$2"
        elif [ -f "$entry" ]; then
            printf '%s\n' "$name"
        else
            refuse "$name is neither a file nor a folder"
        fi
    done
}

# verify TOP: each file is listed, each listed file is there, each digest is the one in the list.
verify() {
    [ -f "$1/SHA256SUMS" ] || refuse "SHA256SUMS is missing"
    listed='
'
    while IFS= read -r line || [ -n "$line" ]; do
        digest=${line%%  *} name=${line#*  }
        case $digest in *[!0-9a-f]* | '') refuse "SHA256SUMS has a line that is none of its kind" ;; esac
        [ ${#digest} -eq 64 ] || refuse "SHA256SUMS has a line that is none of its kind"
        case $name in
            '' | /* | -* | .. | ../* | */.. | */../* | *//* | *[!A-Za-z0-9._+/-]*) refuse "SHA256SUMS names a path outside the bundle" ;;
        esac
        case $listed in *"
$name
"*) refuse "SHA256SUMS names $name twice" ;; esac
        [ -f "$1/$name" ] || refuse "$name is missing"
        listed="$listed$name
"
    done < "$1/SHA256SUMS"
    [ "$listed" != '
' ] || refuse "SHA256SUMS is empty"
    found=$(walk "$1" "$1") || exit 1
    for name in $found; do
        [ "$name" != SHA256SUMS ] || continue
        case $listed in *"
$name
"*) ;; *) refuse "$name is not in SHA256SUMS" ;; esac
    done
    report=$(cd "$1" && sha256sum -c SHA256SUMS 2> /dev/null) || {
        bad=
        while IFS= read -r line; do
            case $line in *": OK") ;; *) bad="$bad${bad:+, }${line%%:*}" ;; esac
        done <<END
$report
END
        refuse "${bad:-a file} has changed"
    }
}

# Copies the bundle to a private place and looks at the copy.
take() {
    have sha256sum || die "sha256sum is not here (coreutils); without it nothing can be verified"
    [ -f "$here/SHA256SUMS" ] || die "$here holds no SHA256SUMS: run install.sh from the unpacked bundle"
    walk "$here" "$here" > /dev/null || exit 1
    stage=$(mktemp -d) || die "no temporary folder; TMPDIR names another place"
    cp -R -- "$here/." "$stage/" || die "the bundle could not be copied to $stage; TMPDIR names another place"
    verify "$stage"
    version='' system='' machine='' glibc='' python_floor=''
    while IFS='=' read -r name value; do
        case $name in
            version) version=$value ;;
            system) system=$value ;;
            machine) machine=$value ;;
            glibc) glibc=$value ;;
            python) python_floor=$value ;;
        esac
    done < "$stage/release"
}

# -- can this host run it? -----------------------------------------------------------------------------------------------

# at_least FOUND FLOOR, of two numbers with a dot each
at_least() {
    [ "${1%%.*}" -gt "${2%%.*}" ] && return
    [ "${1%%.*}" -eq "${2%%.*}" ] && rest=${1#*.} && [ "${rest%%.*}" -ge "${2#*.}" ]
}

check_host() {
    [ "$(uname -s)" = "$system" ] || die "this is for $system; this host runs $(uname -s)"
    [ "$(uname -m)" = "$machine" ] || die "this is for $machine; this host is $(uname -m). Build it from source there: docs/building.md"
    have "$python" || die "modeld needs Python $python_floor or newer, and $python is not here. Debian: apt-get install python3; or --python PATH"
    python=$(command -v "$python")
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "$python does not work"
    at_least "$found" "$python_floor" || die "modeld needs Python $python_floor or newer; $python is $found. --python PATH names another"
    libc=$("$python" -c 'import os; print(os.confstr("CS_GNU_LIBC_VERSION") or "")' 2> /dev/null) || libc=
    case $libc in
        'glibc '[0-9]*.[0-9]*) ;;
        *) die "modeld's libraries need glibc $glibc or newer, and this host's C library is another one (musl?)" ;;
    esac
    at_least "${libc#glibc }" "$glibc" || die "modeld's libraries need glibc $glibc or newer; this host has ${libc#glibc } (Debian 12, Ubuntu 24.04 and later have it)"
    # The program itself, with that Python, before anything is changed.
    answer=$("$python" "$stage/bin/modeld" --version 2>&1) || die "bin/modeld does not run here: $answer"
    case $answer in "modeld $version "*) ;; *) die "bin/modeld says '$answer', not 'modeld $version'" ;; esac
}

# -- by dpkg --------------------------------------------------------------------------------------------------------------

package_is_installed() { have dpkg-query && [ "$(dpkg-query -W -f '${Status}' "$1" 2> /dev/null)" = 'install ok installed' ]; }

# Whether the package is the way, and if not, a word on why.
by_dpkg() {
    [ -z "$own_prefix" ] && have dpkg || return 1
    if [ -f "$manifest" ]; then
        say "the one file was installed before: upgrading that (uninstall first for the package)"
        return 1
    fi
    package_is_installed modeld && return
    [ -n "$use_dpkg" ] || return 1
    if [ "$(dpkg --print-architecture)" != amd64 ]; then return 1; fi
    package_is_installed python3-yaml && return
    say "python3-yaml is not installed, which the Debian package needs: installing the one file, which has its own"
    return 1
}

install_package() {
    # dpkg asks about a configuration that both sides have changed; the host's stays, the new one lies beside it (.dpkg-dist).
    if [ -z "$start" ]; then MODELD_NO_START=yes; export MODELD_NO_START; fi # for the package's postinst
    DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold -i "$stage/packages/modeld_${version}_amd64.deb" < /dev/null \
        || die "dpkg ended with status $?; its words are above"
    prefix=/usr config=/etc/modeld/models.yaml
    answer=$(/usr/bin/modeld --version 2>&1) || die "the package is installed and does not run: $answer"
}

# -- by hand --------------------------------------------------------------------------------------------------------------

# missing_folders NAME: those that lie above it and are not there, down from the prefix, with a slash at the end
missing_folders() {
    folder=${1%/*}
    while [ -n "$folder" ] && [ ! -d "$folder" ]; do
        printf '%s/\n' "$folder"
        [ "$folder" != "$prefix" ] || break
        folder=${folder%/*}
    done
}

# Whether a name in the list of installed files may be removed: nothing outside is, whatever the list says.
ours() {
    case $1 in
        */../* | */..) return 1 ;;
        "$unit" | "$prefix"/* | "${config%/*}/") [ "$1" != "$config" ] ;;
        *) return 1 ;;
    esac
}

# put SOURCE TARGET MODE: whole or not at all; whoever has the old file open keeps it.
put() {
    mkdir -p -- "${2%/*}"
    unfinished=$2.modeld-new
    cp -- "$1" "$unfinished"
    chmod "$3" "$unfinished"
    mv -f -- "$unfinished" "$2"
    unfinished=
}

# moved FROM TO: the lines of stdin with the first FROM of each changed
moved() {
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in *"$1"*) line=${line%%"$1"*}$2${line#*"$1"} ;; esac
        printf '%s\n' "$line"
    done
}

install_by_hand() {
    folder=$prefix
    while [ ! -d "$folder" ] && [ -n "$folder" ]; do folder=${folder%/*}; done
    [ -w "${folder:-/}" ] || die "$prefix cannot be written to; as root, or with --prefix \"\$HOME/.local\""
    before=
    [ ! -f "$manifest" ] || before=$(cat -- "$manifest")
    (cd "$stage" && walk share share) > "$stage/.walked"
    {
        printf '%s\n' "$prefix/bin/modeld" "$manifest" "$prefix/share/modeld/install.sh" "$unit"
        while IFS= read -r name; do printf '%s/share/%s\n' "$prefix" "$name"; done < "$stage/.walked"
    } > "$stage/.installed"
    # Folders that are made now, or were by the version before, go with the rest; others of the same name were here first.
    {
        printf '%s\n' "$before" | while IFS= read -r name; do case $name in */) printf '%s\n' "$name" ;; esac; done
        { cat -- "$stage/.installed"; printf '%s\n' "$config"; } | while IFS= read -r name; do missing_folders "$name"; done
    } | sort -u > "$stage/.folders"
    cat -- "$stage/.folders" >> "$stage/.installed"
    # First the list, so that an interrupted run can be undone; it holds the old files as well until they are gone.
    { cat -- "$stage/.installed"; [ -z "$before" ] || printf '%s\n' "$before"; } > "$stage/.both"
    put "$stage/.both" "$manifest" 644

    while IFS= read -r name; do
        case $name in
            modeld/models.yaml | modeld/modeld.service)
                moved /usr/local/ "$prefix/" < "$stage/share/$name" > "$stage/.moved"
                put "$stage/.moved" "$prefix/share/$name" 644
                ;;
            doc/*/deploy/*)
                first=
                IFS= read -r first < "$stage/share/$name" || true
                case $first in '#!'*) mode=755 ;; *) mode=644 ;; esac
                put "$stage/share/$name" "$prefix/share/$name" "$mode"
                ;;
            *) put "$stage/share/$name" "$prefix/share/$name" 644 ;;
        esac
    done < "$stage/.walked"
    put "$stage/install.sh" "$prefix/share/modeld/install.sh" 755
    put "$stage/bin/modeld" "$prefix/bin/modeld" 755
    [ -e "$config" ] || put "$prefix/share/modeld/models.yaml" "$config" 644
    write_unit
    put "$stage/.unit" "$unit" 644

    # What an older version had and this one has not.
    printf '%s\n' "$before" | while IFS= read -r old; do
        ours "$old" || continue
        kept=
        while IFS= read -r new; do [ "$new" != "$old" ] || { kept=yes; break; }; done < "$stage/.installed"
        [ -n "$kept" ] || rm -f -- "$old"
    done
    put "$stage/.installed" "$manifest" 644
}

# The unit of this prefix, with its configuration; by its full name where Python is not the one that `env python3` finds for a service.
write_unit() {
    case $(command -v python3 || true) in "$python") interpreter= ;; *) interpreter="$python " ;; esac
    while IFS= read -r line; do
        case $line in ExecStart=*) line="ExecStart=$interpreter$prefix/bin/modeld serve --config $config" ;; esac
        printf '%s\n' "$line"
    done < "$prefix/share/modeld/modeld.service" > "$stage/.unit"
}

start_service() {
    booted || return 0
    systemctl daemon-reload
    [ -n "$start" ] || return 0
    if "$prefix/bin/modeld" check --config "$config" > "$stage/.check" 2>&1; then
        systemctl enable modeld.service
        systemctl restart modeld.service || die "the service does not start: journalctl -u modeld"
    else
        cat -- "$stage/.check" >&2
        die "installed, but this version does not accept $config (above); the service was not (re)started"
    fi
}

next_steps() {
    say ""
    say "modeld $version is installed: $prefix/bin/modeld; configuration: $config"
    if [ -n "$own_prefix" ]; then
        say "start it:     $prefix/bin/modeld serve --config $config"
        say "with systemd: systemctl enable --now $unit   (as root; program and models must lie outside /home)"
    elif ! booted; then
        say "systemd does not run here; start it by hand, as a user of its own:"
        say "              $prefix/bin/modeld serve --config $config"
    elif [ -z "$start" ]; then
        say "start it:     systemctl enable --now modeld"
    fi
    say "look at it:   $prefix/bin/modeld doctor --config $config"
    say "ask it:       $prefix/bin/modeld status"
    if [ -n "$own_prefix" ]; then where=" --prefix $prefix"; else where=; fi
    if [ "$prefix" = /usr ]; then
        say "remove it:    dpkg --remove modeld   (--purge: with configuration and state)"
    else
        say "remove it:    sh $prefix/share/modeld/install.sh uninstall$where"
    fi
    say "read on:      $prefix/share/doc/modeld/docs/installing.md"
}

# -- away with it ------------------------------------------------------------------------------------------------------------

uninstall() {
    if [ -z "$own_prefix" ] && [ ! -f "$manifest" ] && have dpkg-query && dpkg-query -W modeld > /dev/null 2>&1; then
        if [ -n "$purge" ]; then how=--purge; else how=--remove; fi
        DEBIAN_FRONTEND=noninteractive dpkg "$how" modeld < /dev/null
        return
    fi
    list=
    if [ -f "$manifest" ]; then
        [ -w "$manifest" ] || die "$manifest cannot be written to; who installed it can uninstall it"
        list=$(cat -- "$manifest")
    elif [ -z "$purge" ] || [ ! -e "$config" ]; then # what an earlier uninstall has left can be purged
        die "nothing of modeld is installed below $prefix (no $manifest)"
    fi
    if [ -z "$own_prefix" ] && booted; then
        systemctl disable --now modeld.service || true
    fi
    if [ -n "$purge" ]; then
        rm -f -- "$config"
        [ -n "$own_prefix" ] || rm -rf /var/lib/private/modeld /var/lib/modeld
    fi
    # Files before the folders that they lie in.
    printf '%s\n' "$list" "${config%/*}/" | sort -r | while IFS= read -r name; do
        ours "$name" || continue
        case $name in
            */) rmdir -- "$name" 2> /dev/null || true ;; # what is not empty stays
            *) rm -f -- "$name" "$name.modeld-new" ;; # the second where a run was cut by a loss of power
        esac
    done
    if [ -z "$own_prefix" ] && booted; then systemctl daemon-reload; fi
    say "modeld is gone from $prefix"
    if [ -e "$config" ]; then say "the configuration stays: $config (--purge removes it)"; fi
}

case $action in
    verify)
        take
        say "modeld $version: every file is as it was packed"
        ;;
    install)
        take
        say "modeld $version: every file is as it was packed"
        check_host
        if [ -z "$own_prefix" ] && [ "$(id -u)" != 0 ]; then
            die "installing for the whole host needs root; for yourself: sh install.sh --prefix \"\$HOME/.local\""
        fi
        if by_dpkg; then
            install_package
        else
            install_by_hand
            [ -n "$own_prefix" ] || start_service
        fi
        next_steps
        ;;
    uninstall) uninstall ;;
esac
