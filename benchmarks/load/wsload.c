/* wsload: a WebSocket load client that costs little, so that the server is what is measured.
 *
 *   gcc -O2 -o wsload wsload.c client.c -lm
 *   wsload -p PORT -n CONNS -m MODE [options]           prints one line of JSON on stdout, progress on stderr
 *
 * Modes
 *   idle      connect, send the join text, stay for -d seconds (answers pings), report how many are still open
 *   echo      the first -A connections (all) keep one message (-t) in flight and send the next when a stamp comes back to them
 *   fixed     connection 0 publishes -t at -r messages/s for -d seconds; all others receive
 *   ramp      as fixed, -T seconds (2) a step, -N steps (60) at most: the rate is doubled from -r until p99 > -L ms or
 *             something is missing, twice; then it is narrowed down between the last that was good and the first that was
 *             not, to -E percent (5)
 *   connects  as fixed, and meanwhile visitors come, are let in, and go: how many a second
 *
 * Options
 *   -P path  -Q path of the publisher  -S WebSocket subprotocol  -b send binary frames
 *   -j join text  -t text  -k marker that precedes the time stamp in what comes back ("ts=")
 *      in texts: %TS% = CLOCK_MONOTONIC in ns, %PAD% = -s bytes of filling, %I% = the connection's number, \xNN = a byte;
 *      %G% = the connection's number modulo -G (1); %R% = a room's number: with -R ROOMS connection i joins i, i + CONNS, i + 2 CONNS ..., and sends to them in turn
 *   -z percent of the receivers that join and then never read (slow consumers; they are not counted)
 *   -w seconds of rest after the connects  -L ms  -d seconds  -r rate  -s bytes
 *   -a number, by which the connections come from other addresses than those of another client on the machine: 127.0.0.2 + number
 *
 * A message counts when its marker arrives, whether frames are batched or not, and its age is its latency. When the
 * publisher's socket is full it waits, so a server that pushes back is not overrun. Compression is not offered.
 * On stderr, `@connected` stands before the rest, and `@begin N` and `@end N` around a measurement; "measurement" in the result
 * is its N. SIGTERM ends the rest, or the measurement of the modes idle and echo.
 */
#define _GNU_SOURCE
#include "client.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { UNDER_WAY = 256, VISITORS = 64, TRIES = 2 };
static const double MIN_ARRIVED = 0.99, MIN_SENT = 0.95;

static double seconds = 5, rest = 1, limit_ms = 100, rate0 = 100, step_seconds = 2, exact_percent = 5;
static int steps = 60;
static const char *mode = "idle";
static conn *all, visitors[VISITORS];
static uint32_t visited;
static double cpu_at;
static uint64_t in_time; /* messages that had arrived when the last one was sent */

/* --- the client's own cost: when it is a whole core, the client was measured, and not the server */

static double cpu_seconds(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}
static void reset(void) {
    counters kept = {.opened = seen.opened, .dead = seen.dead, .stalled = seen.stalled, .rejects = seen.rejects};
    seen = kept;
    seen.since = now();
    cpu_at = cpu_seconds();
}
static double client_busy(void) { return (cpu_seconds() - cpu_at) / ((now() - seen.since) / 1e9); }
static void begin(int number) { reset(); fprintf(stderr, "@begin %d\n", number); }
static void end(int number) { fprintf(stderr, "@end %d\n", number); }

/* --- publishing */

static void let_visitors_in(void) {
    for (int i = 0; i < VISITORS; i++)
        if (visitors[i].state == FREE) dial(&visitors[i], visited++, 1);
}
/* Publishes for `s` seconds at `rate` a second, then waits for what is under way. Returns how many were sent. */
static uint64_t publish(double rate, double s, uint64_t receivers, int with_visitors) {
    static uint8_t out[BUFFER];
    static char message[BUFFER];
    static size_t have, done;
    uint64_t sent = 0, start = now(), stop = start + (uint64_t)(s * 1e9);
    double due = 0;
    while (now() < stop && all[0].state == OPEN) {
        double want = (now() - start) / 1e9 * rate;
        while (done < have) {
            ssize_t n = send(all[0].fd, out + done, have - done, MSG_NOSIGNAL);
            if (n <= 0) break;
            done += n;
        }
        all[0].cut = done < have;
        if (all[0].owes_pong) send_pong(&all[0]);
        if (done == have)
            for (have = done = 0; due < want && have < 60000; due++, sent++)
                have += frame(out + have, opt.opcode, message, render(message, opt.message, &all[0]));
        if (due < want - rate * 0.2) due = want - rate * 0.2; /* held back: do not catch up in one burst */
        pump(rate <= 2000 ? 500 : 50);
        if (with_visitors) let_visitors_in();
    }
    in_time = seen.messages;
    while (done < have && all[0].state == OPEN && now() < stop + 5000000000ull) {
        ssize_t n = send(all[0].fd, out + done, have - done, MSG_NOSIGNAL);
        if (n > 0) done += n;
        pump(1000);
    }
    all[0].cut = done < have;
    if (all[0].owes_pong) send_pong(&all[0]);
    for (uint64_t patience = now() + (uint64_t)(limit_ms * 1e6) + 50000000; now() < patience && seen.messages < sent * receivers;) pump(5000);
    return sent;
}
/* Until nothing of an earlier step arrives any more, so that it cannot be in the way of the next. */
static void come_to_rest(void) {
    for (uint64_t stop = now() + 10000000000ull, before = ~0ull; now() < stop && before != seen.bytes;) { before = seen.bytes; pump_for(.2); }
}
static double share(uint64_t sent, uint64_t receivers) { return sent ? (double)seen.messages / ((double)sent * receivers) : 0; }

/* --- modes */

static void connect_all(void) {
    uint64_t start = now();
    for (int dialled = 0; seen.opened + seen.dead < opt.conns;) {
        while (dialled < opt.conns && dialled - seen.opened - seen.dead < UNDER_WAY) { dial(&all[dialled], dialled, 0); dialled++; }
        pump(100000);
        if (now() - start > 120000000000ull) break;
    }
    double took = (now() - start) / 1e9;
    fprintf(stderr, "open %d, dead %d, rejected %lu, in %.2f s\n", seen.opened, seen.dead, (unsigned long)seen.rejects, took);
    printf("{\"conns\":%d,\"connect_per_s\":%.0f", seen.opened, opt.conns / took);
    fprintf(stderr, "@connected\n");
    pump_for(rest);
}
static void ramp(uint64_t receivers) {
    double good = 0, bad = 0, delivered = 0, p50 = 0, p99 = 0, busy = 0, rate = rate0;
    int dead = seen.dead, best = 0;
    for (int step = 0, fails = 0; step < steps && seen.dead == dead && rate > 0.2; step++) {
        begin(step);
        uint64_t sent = publish(rate, step_seconds, receivers, 0);
        double arrived = share(sent, receivers), slow = latency_percentile(&seen.ages, .99), step_busy = client_busy();
        end(step);
        int ok = slow <= limit_ms && arrived >= MIN_ARRIVED && sent >= MIN_SENT * rate * step_seconds;
        fprintf(stderr, "rate %.1f sent %lu arrived %.3f delivered/s %.0f p50 %.2f p99 %.2f ms %s\n", rate, (unsigned long)sent, arrived,
                seen.messages / step_seconds, latency_percentile(&seen.ages, .5), slow, ok ? "ok" : "FAIL");
        if (ok) { good = rate; delivered = seen.messages / step_seconds; p50 = latency_percentile(&seen.ages, .5); p99 = slow; busy = step_busy; best = step; fails = 0; }
        else {
            come_to_rest();
            if (++fails < TRIES) continue;
            bad = rate;
            fails = 0;
        }
        if (!bad) rate *= 2;
        else if (good && bad / good <= 1 + exact_percent / 100) break;
        else rate = good ? sqrt(good * bad) : bad / 2;
    }
    printf(",\"measurement\":%d,\"dead\":%d,\"max_rate\":%.1f,\"messages_per_s\":%.0f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"client_busy\":%.2f}\n", best, seen.dead,
           good, delivered, p50, p99, busy);
}
/* Connections that should be echoing and got nothing for a second: the server has refused or lost their message. */
static int stuck(void) {
    int count = 0;
    for (int i = 0; i < opt.active && seen.echoing; i++) count += all[i].last + 1000000000ull < now();
    return count;
}
static void measure(uint64_t receivers) {
    uint64_t sent = 0;
    int publishes = !strcmp(mode, "fixed") || !strcmp(mode, "connects");
    begin(0);
    if (publishes) sent = publish(rate0, seconds, receivers, !strcmp(mode, "connects"));
    else {
        if (!strcmp(mode, "echo")) {
            seen.echoing = 1;
            for (int i = 0; i < opt.active; i++) if (all[i].state == OPEN) send_message(&all[i]);
        }
        pump_for(seconds);
        in_time = seen.messages;
    }
    double busy = client_busy();
    end(0);
    printf(",\"measurement\":0,\"dead\":%d,\"stuck\":%d,\"rejects\":%lu,\"closes\":%lu,\"messages\":%lu,\"sent\":%lu,\"arrived\":%.4f,\"messages_per_s\":%.0f,\"frames_per_s\":%.0f,"
           "\"mb_per_s\":%.2f,\"visits_per_s\":%.0f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f,\"client_busy\":%.2f}\n",
           seen.dead, stuck(), (unsigned long)seen.rejects, (unsigned long)seen.closes, (unsigned long)in_time, (unsigned long)sent, publishes ? share(sent, receivers) : 1,
           in_time / seconds, seen.frames / seconds, seen.bytes / seconds / 1e6, seen.visits / seconds,
           latency_percentile(&seen.ages, .5), latency_percentile(&seen.ages, .99), latency_percentile(&seen.ages, .999),
           seen.ages.slowest / 1e6, busy);
}

static void on_term(int number) { (void)number; told_to_end = 1; }

int main(int argc, char **argv) {
    int option;
    opt.message = unescape("ts=%TS% %PAD%");
    while ((option = getopt(argc, argv, "p:P:Q:S:bn:j:t:k:m:d:s:w:r:L:z:R:G:A:T:N:E:a:")) != -1) switch (option) {
        case 'p': opt.port = atoi(optarg); break;
        case 'P': opt.path = optarg; break;
        case 'Q': opt.publisher_path = optarg; break;
        case 'S': opt.subprotocol = optarg; break;
        case 'b': opt.opcode = BINARY; break;
        case 'n': opt.conns = atoi(optarg); break;
        case 'j': opt.join = unescape(optarg); break;
        case 't': opt.message = unescape(optarg); break;
        case 'k': opt.marker = optarg; break;
        case 'm': mode = optarg; break;
        case 'd': seconds = atof(optarg); break;
        case 's': opt.size = atoi(optarg); break;
        case 'w': rest = atof(optarg); break;
        case 'r': rate0 = atof(optarg); break;
        case 'L': limit_ms = atof(optarg); break;
        case 'z': opt.stalled_percent = atoi(optarg); break;
        case 'R': opt.rooms = atoi(optarg); break;
        case 'G': opt.groups = atoi(optarg); break;
        case 'A': opt.active = atoi(optarg); break;
        case 'T': step_seconds = atof(optarg); break;
        case 'E': exact_percent = atof(optarg); break;
        case 'N': steps = atoi(optarg); break;
        case 'a': opt.source = atoi(optarg); break;
        default: return 2;
    }
    signal(SIGTERM, on_term);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (opt.groups < 1) opt.groups = 1;
    if (!opt.active || opt.active > opt.conns) opt.active = opt.conns;
    all = calloc(opt.conns, sizeof *all);
    clients_start();
    connect_all();
    uint64_t receivers = seen.opened - seen.stalled - (opt.publisher_path ? 1 : 0);
    if (!strcmp(mode, "ramp")) ramp(receivers);
    else measure(receivers);
    return 0;
}
