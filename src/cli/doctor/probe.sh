# Run by a step of the doctor's tiny build: says what the step sees, one line each.
# HOST, PORT and URL are the forge's. TARGETS are what no step is to reach: name,address,port, with white space between.
say() { echo "probe $*"; }
has() { command -v "$1" > /dev/null 2>&1; }
limited() { if has timeout; then timeout 8 "$@"; else "$@"; fi; }
addresses() { limited getent ahosts "$1" 2> /dev/null | sed 's/ .*//' | sort -u | tr '\n' ' '; }
connects() { limited bash -c 'exec 3<> "/dev/tcp/$0/$1"' "$1" "$2" 2> /dev/null; }

if has getent; then
    found=$(addresses "$HOST")
    say dns "${found:-none}"
fi

if grep -q '^[0-9a-f]* [0-9a-f]* [0-9a-f]* 00 ' /proc/net/if_inet6 2> /dev/null; then
    say ipv6 yes
else
    say ipv6 no
fi

# Their names alone: an address may hold a password.
say proxy "$(env | sed -n 's/^\([A-Za-z]*_[Pp][Rr][Oo][Xx][Yy]\)=..*/\1/p' | sort | tr '\n' ' ')"

if has curl; then
    if why=$(limited curl -sS -o /dev/null --max-time 8 "$URL" 2>&1); then say tls ok; else say tls "$why"; fi
elif has wget; then
    if why=$(limited wget -q -O /dev/null -T 8 "$URL" 2>&1); then say tls ok; else say tls "wget: $why"; fi
elif has python3; then
    if why=$(limited python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=8)' "$URL" 2>&1 | tail -n 1) && [ -z "$why" ]; then
        say tls ok
    else
        say tls "$why"
    fi
elif has bash; then
    if connects "$HOST" "$PORT"; then say tcp ok; else say tcp failed; fi
fi

mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apk/repositories 2> /dev/null |
    sed -n 's/^[^#]*\(https\{0,1\}\):\/\/\([^/ ]*\).*/\1 \2/p' | head -n 1)
if [ -n "$mirror" ] && has bash; then
    scheme=${mirror% *}
    host=${mirror#* }
    case "$host" in
        *:*) port=${host##*:} host=${host%:*} ;;
        *) if [ "$scheme" = https ]; then port=443; else port=80; fi ;;
    esac
    if connects "$host" "$port"; then say mirror ok "$host"; else say mirror failed "$host"; fi
fi

# The machine that the bridge is on; the kernel writes its address backwards and in hexadecimal.
gateway=
hex=$(sed -n 's/^[^\t]*\t00000000\t\([0-9A-F]\{8\}\)\t.*/\1/p' /proc/net/route 2> /dev/null | head -n 1)
for byte in $(echo "$hex" | sed 's/\(..\)\(..\)\(..\)\(..\)/\4 \3 \2 \1/'); do
    gateway=$gateway${gateway:+.}$(printf %d "0x$byte")
done

# Connects to NAME ADDRESS PORT; whoever refuses has answered.
reach() {
    case "$2" in gateway) address=$gateway ;; *) address=$2 ;; esac
    [ -n "$address" ] || return 0
    if why=$(timeout 4 bash -c 'exec 3<> "/dev/tcp/$0/$1"' "$address" "$3" 2>&1); then
        say "reach:$1" open
    else
        case "$why" in *refused*) say "reach:$1" refused ;; *) say "reach:$1" none ;; esac
    fi
}

if has bash && has timeout; then
    for target in $TARGETS; do
        port=${target##*,} rest=${target%,*}
        reach "${rest%%,*}" "${rest#*,}" "$port" &
    done
    wait
fi
exit 0
