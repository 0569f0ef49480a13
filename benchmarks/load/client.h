/* WebSocket clients: many non-blocking sockets and one epoll. */
#ifndef CLIENT_H
#define CLIENT_H

#include "latency.h"
#include <signal.h>
#include <stddef.h>

enum state { FREE, CONNECTING, HANDSHAKE, OPEN, DEAD };
enum { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10, CARRY = 130, BUFFER = 1 << 20 };

typedef struct {
    int fd;
    uint32_t index;
    uint16_t close_code;
    uint32_t turn; /* of its rooms, which one its next message goes to */
    uint64_t last; /* when the last stamp arrived, ns */
    uint8_t state, opcode, header_len, carry_len, header[14], visitor;
    uint8_t cut; /* the socket took a part of a frame only: nothing else may be sent before the rest */
    uint8_t owes_pong, pong_len;
    char pong[125];
    uint64_t remaining; /* payload bytes still to come in this frame */
    char carry[CARRY];  /* a marker cut in two by a read, or a ping's payload */
} conn;

/* A message to send: see `render` for what is filled in. */
typedef struct {
    char *bytes;
    size_t len;
} text;

/* What to do; filled in by main. */
typedef struct {
    int port, conns, size, stalled_percent, rooms, groups, active, opcode, source;
    const char *path, *publisher_path, *subprotocol, *marker;
    text join, message;
} options;

/* What has happened. `since`: stamps before it belong to an earlier step, and are not counted. */
typedef struct {
    int opened, dead, stalled, visits, echoing;
    uint64_t messages, bytes, frames, closes, rejects, since;
    latencies ages;
} counters;

extern options opt;
extern counters seen;
extern volatile sig_atomic_t told_to_end; /* SIGTERM has come: what waits for time to pass ends */

void clients_start(void);
text unescape(const char *template);
size_t render(char *out, text template, conn *c);
size_t frame(uint8_t *out, int opcode, const char *payload, size_t n);
void send_message(conn *c);
void send_pong(conn *c);
void dial(conn *c, uint32_t index, int visitor);
void pump(int us);
void pump_for(double seconds);

#endif
