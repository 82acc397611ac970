#!/bin/sh
# What somebody with a stick does on a fresh Debian: runs inside the tree, without network, as its root. $1: package, file or user.
#
# /srv/new and /srv/old are unpacked bundles, the second of an older version. Every command is shown before it is run; the
# first that fails ends the script. systemd does not run here: what its unit would start is started by hand, as a user of no rights.
set -eu
begin=$(date +%s)
show() { printf '[%3d s] # %s\n' $(($(date +%s) - begin)) "$*"; }
run() { printf '[%3d s] $ %s\n' $(($(date +%s) - begin)) "$*"; "$@"; }
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }

cat > /tmp/readyz.py <<'END'
"""curl is not in a minimal Debian: waits until GET /readyz is 200, a minute at most, and shows the answer."""
import sys, time, urllib.request

deadline = time.monotonic() + 60
while True:
    try:
        with urllib.request.urlopen("http://127.0.0.1:8080/readyz", timeout=60) as answer:
            print(answer.status, answer.read().decode().rstrip())
            break
    except OSError as error:  # 503 is one, too
        if time.monotonic() > deadline:
            sys.exit(f"not within a minute: {error}")
    time.sleep(0.05)
END
files() { find / -xdev \( -path /proc -o -path /tmp -o -path /srv -o -path /var/log -o -path /dev -o -path /sys \) -prune -o -print | sort > "$1"; }
same() { diff "$1" "$2" && show "$3: not a file more or less than before"; }

# serve COMMAND...: as the unit would, as a user without rights
serve() {
    mkdir -p /tmp/state && chown 65534:65534 /tmp/state
    printf '[%3d s] $ %s &\n' $(($(date +%s) - begin)) "$*"
    STATE_DIRECTORY=/tmp/state setpriv --reuid=65534 --regid=65534 --clear-groups "$@" > /tmp/log 2>&1 &
    daemon=$!
}
stop() {
    run kill -TERM "$daemon"
    status=0
    wait "$daemon" || status=$?
    [ "$status" = 0 ] || { cat /tmp/log; fail "the daemon ended with status $status"; }
    show "it has ended with status 0"
}
# tour PROGRAM CONFIG
tour() {
    run python3 /tmp/readyz.py
    show "the library that was chosen: $(grep -o 'x86-64-[a-z0-9]*' /tmp/log | head -1)"
    run "$1" status
    run "$1" switch demo-calc --wait
    run "$1" complete --temperature 0 12+30= > /tmp/answer; cat /tmp/answer
    tail -1 /tmp/answer | grep -qx 42 || fail "12+30 is 42"
    run "$1" status
    "$1" doctor --config "$2" > /tmp/doctor || { cat /tmp/doctor; fail "modeld doctor finds problems"; }
    show "modeld doctor: $(tail -1 /tmp/doctor)"
}

show "$(. /etc/os-release; echo "$PRETTY_NAME"), $(python3 --version), $(ldd --version | head -1), $(dpkg -l | grep -c '^ii') packages"
python3 - <<'END'
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
print("interfaces:", [name for _, name in socket.if_nameindex()])
END

case $1 in
package)
    files /tmp/before
    cd /srv/old
    run sh install.sh
    run modeld --version
    run sed -i 's/^  - id: demo-calc/  # mine\n  - id: demo-calc/' /etc/modeld/models.yaml
    cd /srv/new
    run sh install.sh
    run modeld --version
    run grep -n mine /etc/modeld/models.yaml
    run modeld check
    command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/modeld.service)
    serve $command
    tour modeld /etc/modeld/models.yaml
    stop
    run sh install.sh uninstall
    [ -f /etc/modeld/models.yaml ] || fail "remove took the configuration"
    run dpkg --purge modeld
    files /tmp/after
    same /tmp/before /tmp/after "purged"
    run sh install.sh --no-start
    run sh install.sh uninstall --purge
    files /tmp/after
    same /tmp/before /tmp/after "purged"
    ;;
file)
    run dpkg --purge python3-yaml libyaml-0-2
    files /tmp/before
    cd /srv/old
    run sh install.sh
    run sed -i 's/^  - id: demo-calc/  # mine\n  - id: demo-calc/' /etc/modeld/models.yaml
    cd /srv/new
    run sh install.sh
    files /tmp/first
    run sh install.sh
    files /tmp/second
    same /tmp/first /tmp/second "installed twice"
    run grep -n mine /etc/modeld/models.yaml
    run modeld --version
    command=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/modeld.service)
    serve $command
    tour modeld /etc/modeld/models.yaml
    stop
    run sh /usr/local/share/modeld/install.sh uninstall
    run sh install.sh uninstall --purge
    files /tmp/after
    same /tmp/before /tmp/after "uninstalled"
    printf x | dd of=bin/modeld bs=1 seek=100000 conv=notrunc 2> /dev/null
    show "one byte of bin/modeld has another value now"
    if run sh install.sh; then fail "a changed bundle was installed"; fi
    files /tmp/after
    same /tmp/before /tmp/after "refused"
    ;;
user)
    run dpkg --purge python3-yaml libyaml-0-2
    mkdir -p /home/ann && chown 1000:1000 /home/ann
    files /tmp/before
    cd /srv/new
    cat > /tmp/ann.sh <<'END'
set -eu
cd /tmp/bundle
if sh install.sh; then exit 1; fi
sh install.sh --prefix "$HOME/.local"
"$HOME/.local/bin/modeld" --version
END
    cp -R /srv/new /tmp/bundle
    as_ann="env HOME=/home/ann USER=ann setpriv --reuid=1000 --regid=1000 --clear-groups"
    run $as_ann sh /tmp/ann.sh
    printf '[%3d s] $ ~/.local/bin/modeld serve --config ~/.local/etc/modeld/models.yaml &\n' $(($(date +%s) - begin))
    $as_ann /home/ann/.local/bin/modeld serve --config /home/ann/.local/etc/modeld/models.yaml > /tmp/log 2>&1 &
    daemon=$!
    tour /home/ann/.local/bin/modeld /home/ann/.local/etc/modeld/models.yaml
    stop
    run $as_ann sh /home/ann/.local/share/modeld/install.sh uninstall --prefix /home/ann/.local --purge
    run rm -rf /home/ann/.local/state
    run find /home/ann
    ;;
esac
show "done"
