#!/bin/sh
# CGI program in front of git http-backend. Repositories of the owner "private"
# ask for a password, which has to be the token, whatever the user's name is;
# all others are open, and credentials sent along with them do no harm.

refuse() {
    printf 'Status: 401 Unauthorized\r\n'
    printf 'WWW-Authenticate: Basic realm="git"\r\n'
    printf 'Content-Type: text/plain\r\n\r\nthis repository needs a token\n'
    exit 0
}

case $PATH_INFO in
    /-/ready)
        printf 'Content-Type: text/plain\r\n\r\nready\n'
        exit 0
        ;;
    /private/*)
        case $HTTP_AUTHORIZATION in
            [Bb]asic\ *) credentials=$(printf %s "${HTTP_AUTHORIZATION#* }" | base64 -d 2>/dev/null) ;;
            *) refuse ;;
        esac
        [ "${credentials#*:}" = "$GIT_TOKEN" ] || refuse
        ;;
esac
unset HTTP_AUTHORIZATION GIT_TOKEN
exec "$GIT_HTTP_BACKEND"
