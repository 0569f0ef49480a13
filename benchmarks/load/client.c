/* See client.h. Nothing here allocates or copies for each message. */
#define _GNU_SOURCE
#include "client.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

options opt = {.port = 8765, .conns = 100, .size = 64, .opcode = TEXT, .path = "/", .marker = "ts=", .groups = 1};
counters seen;
volatile sig_atomic_t told_to_end;
static int epoll;
static size_t marker_len;

/* What a fan-out sends is the same bytes for each receiver: the last few reads are remembered with the stamps that were found
 * in them, and a read that equals one of them is compared rather than searched. Only whole frames of text are remembered. */
enum { REMEMBERED = 8, MAX_STAMPS = 8192 };
typedef struct {
    size_t len;
    int count;
    uint64_t frames, stamps[MAX_STAMPS];
    uint8_t bytes[4 * 65536];
} known;
static known remembered[REMEMBERED], *learning;

void clients_start(void) {
    epoll = epoll_create1(0);
    marker_len = strlen(opt.marker);
}

/* --- what is sent */

/* A template from the command line: \xNN stands for a byte. */
text unescape(const char *template) {
    text t = {malloc(strlen(template) + 1), 0};
    unsigned byte;
    while (*template) {
        if (sscanf(template, "\\x%2x", &byte) == 1) { t.bytes[t.len++] = (char)byte; template += 4; }
        else t.bytes[t.len++] = *template++;
    }
    return t;
}
/* The room that a connection's next message goes to: connection i is in the rooms i, i + conns, i + 2 conns ... */
static uint32_t room_of(conn *c) {
    uint32_t joined = opt.rooms > (int)c->index ? (opt.rooms - 1 - c->index) / opt.conns + 1 : 1;
    return c->index + opt.conns * (c->turn++ % joined);
}
/* %TS% = CLOCK_MONOTONIC in ns, 20 digits; %PAD% = filling; %I% = the connection's number; %R% = the number of a room;
 * %G% = the connection's number modulo the number of groups */
size_t render(char *out, text template, conn *c) {
    char *at = out;
    const char *t = template.bytes, *end = t + template.len;
    while (t < end) {
        if (*t != '%') *at++ = *t++;
        else if (!strncmp(t, "%TS%", 4)) { at += sprintf(at, "%020llu", (unsigned long long)now()); t += 4; }
        else if (!strncmp(t, "%PAD%", 5)) { memset(at, 'x', opt.size); at += opt.size; t += 5; }
        else if (!strncmp(t, "%I%", 3)) { at += sprintf(at, "%u", c->index); t += 3; }
        else if (!strncmp(t, "%G%", 3)) { at += sprintf(at, "%u", c->index % opt.groups); t += 3; }
        else if (!strncmp(t, "%R%", 3)) { at += sprintf(at, "%u", room_of(c)); t += 3; }
        else *at++ = *t++;
    }
    return at - out;
}
/* A masked client frame (the mask is zero, which servers must take as any other). Returns its length. */
size_t frame(uint8_t *out, int opcode, const char *payload, size_t n) {
    size_t h = 2;
    out[0] = 0x80 | opcode;
    if (n < 126) out[1] = 0x80 | n;
    else if (n < 65536) { out[1] = 0x80 | 126; out[2] = n >> 8; out[3] = n; h = 4; }
    else { out[1] = 0x80 | 127; for (int i = 0; i < 8; i++) out[2 + i] = (uint64_t)n >> (56 - 8 * i); h = 10; }
    memset(out + h, 0, 4);
    memcpy(out + h + 4, payload, n);
    return h + 4 + n;
}
static void send_frame(conn *c, int opcode, const char *payload, size_t n) {
    static uint8_t out[BUFFER + 16];
    size_t total = frame(out, opcode, payload, n), done = 0;
    while (done < total) { /* a client that answers pings and echoes may spin for a moment here */
        ssize_t r = send(c->fd, out + done, total - done, MSG_NOSIGNAL);
        if (r > 0) done += r;
        else if (errno != EAGAIN) return;
    }
}
static void send_text(conn *c, text template) {
    static char out[BUFFER];
    send_frame(c, opt.opcode, out, render(out, template, c));
}
void send_message(conn *c) { send_text(c, opt.message); }

/* Answer the last ping, as soon as that does not cut a frame in two. */
void send_pong(conn *c) {
    c->owes_pong = c->cut;
    if (!c->cut) send_frame(c, PONG, c->pong, c->pong_len);
}
static void pinged(conn *c) {
    memcpy(c->pong, c->carry, c->pong_len = c->carry_len);
    send_pong(c);
}

/* --- the life of a connection */

static void ended(conn *c, int as) {
    if (c->state == OPEN && !c->visitor) seen.opened--;
    c->state = as;
    close(c->fd);
}
static void lost(conn *c) {
    if (c->state == DEAD || c->state == FREE) return;
    if (!c->visitor && seen.dead++ < 5) fprintf(stderr, "lost connection %u, close code %u: %s\n", c->index, c->close_code, strerror(errno));
    ended(c, c->visitor ? FREE : DEAD);
}
static void is_open(conn *c) {
    c->state = OPEN;
    if (c->visitor) { /* it came to see whether it is let in, and goes */
        seen.visits++;
        send_frame(c, CLOSE, "\x03\xe8", 2);
        ended(c, FREE);
        return;
    }
    seen.opened++;
    if (opt.join.len)
        for (int i = 0, n = opt.rooms ? (opt.rooms > (int)c->index ? (opt.rooms - 1 - (int)c->index) / opt.conns + 1 : 0) : 1; i < n; i++)
            send_text(c, opt.join);
    if (opt.stalled_percent && c->index && c->index % 100 < (uint32_t)opt.stalled_percent) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
        seen.stalled++;
    }
}
/* A visitor is a connection that leaves as soon as it is let in. */
void dial(conn *c, uint32_t index, int visitor) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    *c = (conn){.index = index, .visitor = visitor, .state = CONNECTING, .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    if (c->fd < 0) { perror("socket"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (opt.conns > 25000 || visitor || opt.source) { /* one address has 28,000 ports, and who has left still holds his for a while */
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        address.sin_addr.s_addr = htonl((visitor ? 0x7f010002 : 0x7f000002) + opt.source + index / (visitor ? 10000 : 25000));
        if (bind(c->fd, (void *)&address, sizeof address)) { perror("bind"); exit(1); }
    }
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(opt.port);
    connect(c->fd, (void *)&address, sizeof address);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
}
static void handshake(conn *c) {
    char request[2048], target[1024], protocol[256] = "";
    int error = 0;
    socklen_t n = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n);
    if (error) { lost(c); return; }
    const char *path = !c->index && !c->visitor && opt.publisher_path ? opt.publisher_path : opt.path;
    target[render(target, (text){(char *)path, strlen(path)}, c)] = 0;
    if (opt.subprotocol) snprintf(protocol, sizeof protocol, "Sec-WebSocket-Protocol: %s\r\n", opt.subprotocol);
    int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n", target, opt.port, protocol);
    if (send(c->fd, request, len, MSG_NOSIGNAL) != len) { lost(c); return; }
    c->state = HANDSHAKE;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
}

/* --- what is received */

static void arrived(conn *c, uint64_t stamp, uint64_t t) {
    if (stamp < seen.since) return;
    seen.messages++;
    c->last = t;
    latency_add(&seen.ages, stamp <= t ? t - stamp : 0);
    if (seen.echoing && c->index < (uint32_t)opt.active) send_message(c);
}
/* memmem by way of memchr for the marker's last byte ("="), which is seldom: four times as fast on filling. */
static const char *find_marker(const char *at, const char *end) {
    const char last = opt.marker[marker_len - 1];
    for (const char *p = at + marker_len - 1; p < end && (p = memchr(p, last, end - p)); p++)
        if (!memcmp(p - marker_len + 1, opt.marker, marker_len)) return p - marker_len + 1;
    return NULL;
}
/* Counts the markers in a piece of payload; a marker or stamp cut in two is carried over. */
static void scan(conn *c, const char *piece, size_t n, int last) {
    static char joined[CARRY + 4 * 65536];
    const char *at = piece, *end, *digit;
    if (c->carry_len) {
        memcpy(joined, c->carry, c->carry_len);
        memcpy(joined + c->carry_len, piece, n);
        at = joined;
        n += c->carry_len;
        c->carry_len = 0;
    }
    end = at + n;
    uint64_t t = 0;
    while (at < end) {
        const char *hit = find_marker(at, end);
        if (!hit) {
            size_t keep = (size_t)(end - at) < marker_len - 1 ? (size_t)(end - at) : marker_len - 1;
            if (!last) { memcpy(c->carry, end - keep, keep); c->carry_len = keep; }
            return;
        }
        uint64_t stamp = 0;
        for (digit = hit + marker_len; digit < end && *digit >= '0' && *digit <= '9'; digit++) stamp = stamp * 10 + *digit - '0';
        if (digit == end && !last) {
            size_t keep = end - hit;
            if (keep < CARRY) { memcpy(c->carry, hit, keep); c->carry_len = keep; }
            return;
        }
        if (!t) t = now();
        arrived(c, stamp, t);
        if (learning) {
            if (learning->count < MAX_STAMPS) learning->stamps[learning->count++] = stamp;
            else learning = NULL;
        }
        at = digit;
    }
}
static void feed(conn *c, uint8_t *p, size_t n) {
    while (n) {
        if (c->remaining) {
            size_t k = n < c->remaining ? n : c->remaining;
            c->remaining -= k;
            if (c->opcode <= BINARY) scan(c, (char *)p, k, !c->remaining);
            else if (c->carry_len + k <= sizeof c->pong) { memcpy(c->carry + c->carry_len, p, k); c->carry_len += k; }
            p += k;
            n -= k;
            if (!c->remaining) {
                if (c->opcode == PING) pinged(c);
                if (c->opcode == CLOSE) c->close_code = (uint8_t)c->carry[0] << 8 | (uint8_t)c->carry[1];
                c->carry_len = c->header_len = 0;
            }
            continue;
        }
        if (!c->header_len && n > 4 && p[0] < 0x80 + CLOSE && p[1] < 127) { /* nearly always */
            size_t h = p[1] < 126 ? 2 : 4;
            c->opcode = p[0] & 15;
            c->remaining = h == 2 ? p[1] : p[2] << 8 | p[3];
            c->carry_len = 0;
            seen.frames++;
            p += h;
            n -= h;
            continue;
        }
        c->header[c->header_len++] = *p++;
        n--;
        if (c->header_len < 2) continue;
        int short_len = c->header[1] & 127;
        if (c->header_len < 2 + (short_len == 126 ? 2 : short_len == 127 ? 8 : 0)) continue;
        c->remaining = short_len;
        if (short_len == 126) c->remaining = c->header[2] << 8 | c->header[3];
        if (short_len == 127) { c->remaining = 0; for (int i = 0; i < 8; i++) c->remaining = c->remaining << 8 | c->header[2 + i]; }
        c->opcode = c->header[0] & 15;
        c->carry_len = 0;
        seen.frames++;
        if (c->opcode == CLOSE) seen.closes++;
        if (c->opcode >= CLOSE) learning = NULL;
        if (!c->remaining) { if (c->opcode == PING) pinged(c); c->header_len = 0; }
    }
}
static int at_border(conn *c) { return !c->remaining && !c->header_len && !c->carry_len; }
static void take(conn *c, uint8_t *p, size_t n) {
    static int oldest;
    if (seen.echoing || !at_border(c)) { feed(c, p, n); return; }
    for (known *k = remembered; k < remembered + REMEMBERED; k++)
        if (k->len == n && !memcmp(k->bytes, p, n)) {
            uint64_t t = now();
            for (int i = 0; i < k->count; i++) arrived(c, k->stamps[i], t);
            seen.frames += k->frames;
            return;
        }
    uint64_t before = seen.frames;
    learning = &remembered[oldest];
    learning->len = learning->count = 0;
    feed(c, p, n);
    if (learning && at_border(c)) {
        learning->frames = seen.frames - before;
        memcpy(learning->bytes, p, learning->len = n);
        oldest = (oldest + 1) % REMEMBERED;
    }
    learning = NULL;
}
static void readable(conn *c) {
    static uint8_t buffer[4 * 65536];
    for (int turn = 0; turn < 4; turn++) {
        ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
        if (n == 0) errno = 0;
        if (n <= 0) { if (n == 0 || (errno != EAGAIN && errno != EINTR)) lost(c); return; }
        seen.bytes += n;
        if (c->state == HANDSHAKE) {
            uint8_t *end = memmem(buffer, n, "\r\n\r\n", 4);
            if (!end) continue; /* answers to the upgrade arrive in one piece on loopback */
            if (memcmp(buffer, "HTTP/1.1 101", 12)) { seen.rejects++; lost(c); return; }
            is_open(c);
            if (c->state == OPEN) feed(c, end + 4, buffer + n - (end + 4));
        } else if (c->state == OPEN) take(c, buffer, n);
        if (c->state != OPEN || n < (ssize_t)sizeof buffer) return;
    }
}
/* Wait for something to serve, `us` microseconds at most: less than epoll_wait can, and older kernels than 5.11. */
static int wait_for_events(struct epoll_event *events, int most, int us) {
#ifdef SYS_epoll_pwait2
    struct { int64_t s, ns; } t = {us / 1000000, us % 1000000 * 1000};
    int n = syscall(SYS_epoll_pwait2, epoll, events, most, &t, NULL, 0);
    if (n >= 0 || errno != ENOSYS) return n;
#endif
    return epoll_wait(epoll, events, most, (us + 999) / 1000);
}
void pump(int us) {
    static struct epoll_event events[1024];
    int n = wait_for_events(events, 1024, us);
    for (int i = 0; i < n; i++) {
        conn *c = events[i].data.ptr;
        if (c->state == CONNECTING) handshake(c);
        else if (c->state != DEAD && c->state != FREE && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
    }
}
void pump_for(double seconds) { for (uint64_t end = now() + (uint64_t)(seconds * 1e9); now() < end && !told_to_end;) pump(5000); }
