#!/bin/sh
# What somebody with a stick does on a fresh Debian: runs inside the tree, without network, as its root. $1: package, file or user.
#
# /root/new and /root/old are unpacked bundles, the second of an older version. Every command is shown before it is run; the
# first that fails ends the script. systemd does not run here: what its unit would start is started by hand, as a user of no rights.
set -eu
begin=$(date +%s)
show() { printf '[%3d s] # %s\n' $(($(date +%s) - begin)) "$*"; }
run() { printf '[%3d s] $ %s\n' $(($(date +%s) - begin)) "$*"; "$@"; }
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }

cat > /tmp/ask.py <<'END'
"""curl is not in a minimal Debian: METHOD PATH [BODY] prints the answer; `until` PATH STATUS waits for it, a minute at most."""
import json, sys, time, urllib.error, urllib.request

method, path, *rest = sys.argv[1:]
deadline = time.monotonic() + 60


def ask(method, path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:8080{path}", body and body.encode(), {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


while True:
    status, text = ask("GET" if method == "until" else method, path, rest[0] if method != "until" and rest else None)
    if method != "until" or str(status) == rest[0]:
        break
    if time.monotonic() > deadline:
        sys.exit(f"not within a minute; the last answer: {status} {text}")
    time.sleep(0.05)
print(status, text[:400].rstrip())
sys.exit(status >= 400)
END
ask() { run python3 /tmp/ask.py "$@"; }

files() { find / -xdev \( -path /proc -o -path /tmp -o -path /root -o -path /var/log -o -path /dev -o -path /sys \) -prune -o -print | sort > "$1"; }
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
tour() {
    ask until /readyz 200
    show "the library that was chosen: $(grep -o 'x86-64-[a-z0-9]*' /tmp/log | head -1)"
    ask POST '/switch?wait=60' '{"model_id": "demo-calc"}'
    ask POST /v1/completions '{"prompt": "12+30=", "temperature": 0}' > /tmp/answer; cat /tmp/answer
    grep -q '"text": "42"' /tmp/answer || fail "12+30 is 42"
    ask GET /status
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
    cd /root/old
    run sh install.sh
    run modeld --version
    run sed -i 's/^  - id: demo-calc/  # mine\n  - id: demo-calc/' /etc/modeld/models.yaml
    cd /root/new
    run sh install.sh
    run modeld --version
    run grep -n mine /etc/modeld/models.yaml
    run modeld check
    command=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/modeld.service)
    serve $command
    tour
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
    cd /root/old
    run sh install.sh
    run sed -i 's/^  - id: demo-calc/  # mine\n  - id: demo-calc/' /etc/modeld/models.yaml
    cd /root/new
    run sh install.sh
    files /tmp/first
    run sh install.sh
    files /tmp/second
    same /tmp/first /tmp/second "installed twice"
    run grep -n mine /etc/modeld/models.yaml
    run modeld --version
    command=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/modeld.service)
    serve $command
    tour
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
    cd /root/new
    cat > /tmp/ann.sh <<'END'
set -eu
cd /tmp/bundle
if sh install.sh; then exit 1; fi
sh install.sh --prefix "$HOME/.local"
"$HOME/.local/bin/modeld" --version
END
    cp -R /root/new /tmp/bundle
    as_ann="env HOME=/home/ann USER=ann setpriv --reuid=1000 --regid=1000 --clear-groups"
    run $as_ann sh /tmp/ann.sh
    printf '[%3d s] $ ~/.local/bin/modeld serve --config ~/.local/etc/modeld/models.yaml &\n' $(($(date +%s) - begin))
    $as_ann /home/ann/.local/bin/modeld serve --config /home/ann/.local/etc/modeld/models.yaml > /tmp/log 2>&1 &
    daemon=$!
    tour
    stop
    run $as_ann sh /home/ann/.local/share/modeld/install.sh uninstall --prefix /home/ann/.local --purge
    run rm -rf /home/ann/.local/state
    run find /home/ann
    ;;
esac
show "done"
