/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/vmm.h"

#include "fuzz.h"

/* A back end (OPS) against a VMM that says what the input says. That is a play: at the begin of a line "@" and a letter, then what is
 * said up to the next such line.
 *
 *   @j TEXT  answers with this result        @P pause   @R resume        @F free
 *   @f TEXT  answers with this error         @B boot    @W power button  @E free at the event of this number
 *   @s TEXT  says just this                  @X reset   @Q quit          @K free at the next reply
 *   @e TEXT  tells this unasked              @O reboot  @C cancel it     @L hang up
 *   @x TEXT  the last words of one that      @N counters                 @D drain
 *            has ended with this status (two bytes)
 */

#define STEPS_MAX 64U
#define IDS_MAX 64U

extern const VMMOps OPS;

typedef struct Call {
        bool accepted;
        unsigned answers;
} Call;

typedef struct Play {
        VMM *vmm;
        int peer, fifo;
        bool asked;                     /* HTTP: a request has come that is not answered */
        int64_t ids[IDS_MAX];           /* QMP: of the commands that are not answered */
        size_t n_ids;
        char received[64 * 1024];
        size_t n_received;

        bool connected, disconnected, free_on_reply, reboot_canceled, freed;
        VMMEvent free_on;
        Call calls[STEPS_MAX];
        unsigned n_calls;
} Play;

static sd_event *event;
static int listener = -EBADF;
static Play play;

static bool by_http(void) {
        return OPS.program != PROGRAM_QEMU;
}

static void free_vmm(void) {
        VMM *v = TAKE_PTR(play.vmm);

        if (!v)
                return;
        vmm_freep(&v);
        play.freed = true;
}

static void on_event(void *userdata, VMMEvent what, VMMState state, int error) {
        fuzz_assert(play.vmm && !play.disconnected);
        fuzz_assert((unsigned) what < _VMM_EVENT_MAX && (what == VMM_EVENT_DISCONNECTED) == (error < 0));
        fuzz_assert(what != VMM_EVENT_CONNECTED || !play.connected);
        play.connected |= what == VMM_EVENT_CONNECTED;
        play.disconnected = what == VMM_EVENT_DISCONNECTED;
        if (what == play.free_on)
                free_vmm();
}

static void on_reply(void *userdata, int error, const char *message) {
        Call *c = userdata;

        c->answers++;
        fuzz_assert(!play.freed);
        fuzz_assert(error <= 0 && (error != -ECANCELED || !play.vmm || play.reboot_canceled));
        fuzz_assert(!message || strlen(message) <= 2048);
        if (TAKE_GENERIC(play.free_on_reply, bool, false))
                free_vmm();
}

static void on_counters(void *userdata, int error, const VMMCounter *counters, size_t n) {
        fuzz_assert(n <= 4096);
        for (size_t i = 0; i < n; i++)
                fuzz_assert(memchr(counters[i].name, 0, sizeof counters[i].name) && *counters[i].name);
        on_reply(userdata, error, NULL);
}

/* The other side */

static void hang_up(void) {
        play.peer = safe_close(play.peer);
        play.asked = false;
        play.n_ids = play.n_received = 0;
}

static void say(const char *s, size_t n) {
        if (play.peer >= 0)
                (void) send(play.peer, s, n, MSG_NOSIGNAL|MSG_DONTWAIT);
}

static void note_ids(void) {
        char *end;

        while ((end = memchr(play.received, '\n', play.n_received))) {
                const char *id;

                *end = 0;
                id = strstr(play.received, "\"id\":");
                if (id && play.n_ids < IDS_MAX)
                        play.ids[play.n_ids++] = strtoll(id + 5, NULL, 10);
                play.n_received -= (size_t) (end + 1 - play.received);
                memmove(play.received, end + 1, play.n_received);
        }
}

static void listen_to_client(void) {
        ssize_t n;

        if (play.peer < 0)
                play.peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC|SOCK_NONBLOCK);
        if (play.peer < 0)
                return;
        if (play.n_received == sizeof play.received)
                play.n_received = 0;
        n = recv(play.peer, play.received + play.n_received, sizeof play.received - play.n_received, MSG_DONTWAIT);
        if (n == 0)
                hang_up();
        if (n <= 0)
                return;
        if (by_http()) {
                play.asked = true;
                return;
        }
        play.n_received += (size_t) n;
        note_ids();
}

/* Until both sides have nothing more to do; a while longer when an answer waits for a question. */
static void turn(bool answer) {
        for (unsigned i = 0, idle = 0; i < 200 && idle < 2; i++) {
                int r = sd_event_run(event, answer && by_http() && !play.asked && !play.disconnected && play.vmm ? 2000 : 0);

                listen_to_client();
                idle = r == 0 ? idle + 1 : 0;
        }
}

static void answer(const char *text, size_t n, bool good) {
        _cleanup_free_ char *head = NULL;

        turn(true);
        if (by_http()) {
                if (!play.asked)
                        return;
                head = strjoinf("HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n", good ? n > 0 ? "200" : "204" : "400", n);
                fuzz_assert(head);
                say(head, strlen(head));
                say(text, n);
                hang_up();
                return;
        }
        if (play.n_ids == 0)
                return;
        head = strjoinf("{\"%s\": %.*s, \"id\": %lld}\r\n", good ? "return" : "error", (int) n, text, (long long) play.ids[0]);
        fuzz_assert(head);
        say(head, strlen(head));
        memmove(play.ids, play.ids + 1, --play.n_ids * sizeof play.ids[0]);
}

static void tell(const char *text, size_t n) {
        if (by_http())
                (void) !write(play.fifo, text, n);
        else
                say(text, n);
}

static void exit_with(const char *text, size_t n) {
        _cleanup_free_ char *words = n >= 2 ? escape_untrusted(text + 2, n - 2, 2048) : NULL;
        VMMEvent e;

        if (!words)
                return;
        e = OPS.exit_cause((unsigned char) text[0] | (unsigned char) text[1] << 8, words);
        fuzz_assert(e == VMM_EVENT_GUEST_SHUTDOWN || e == VMM_EVENT_GUEST_RESET || e == VMM_EVENT_GUEST_PANICKED ||
                    e == VMM_EVENT_FAILED || e == VMM_EVENT_EXITED || e == _VMM_EVENT_MAX);
}

/* This side */

static void call(char what, const char *text, size_t n) {
        _cleanup_free_ char *config = fuzz_string(n > 0 ? text : "{}", n > 0 ? n : 2);
        Call *c = &play.calls[play.n_calls++];
        VMM *v = play.vmm;
        int r = -EOPNOTSUPP;

        *c = (Call) { .accepted = true };
        if (what == 'B')
                r = OPS.boot(v, config, on_reply, c);
        else if (what == 'P')
                r = OPS.pause(v, on_reply, c);
        else if (what == 'R')
                r = OPS.resume(v, on_reply, c);
        else if (what == 'W')
                r = OPS.power_button(v, on_reply, c);
        else if (what == 'X' && OPS.reset)
                r = OPS.reset(v, on_reply, c);
        else if (what == 'Q' && OPS.quit)
                r = OPS.quit(v, on_reply, c);
        else if (what == 'O' && OPS.reboot)
                r = OPS.reboot(v, on_reply, c);
        else if (what == 'N')
                r = OPS.counters(v, on_counters, c);
        fuzz_assert(r <= 0);
        fuzz_assert(c->answers == 0);
        c->accepted = r == 0;
}

static void step(char what, const char *text, size_t n) {
        if (what == 'j' || what == 'f')
                answer(text, n, what == 'j');
        else if (what == 's') {
                turn(true);
                say(text, n);
        } else if (what == 'e')
                tell(text, n);
        else if (what == 'x')
                exit_with(text, n);
        else if (what == 'L')
                hang_up();
        else if (!play.vmm)
                return;
        else if (what == 'F')
                free_vmm();
        else if (what == 'E')
                play.free_on = n > 0 ? (unsigned char) text[0] % _VMM_EVENT_MAX : VMM_EVENT_CONNECTED;
        else if (what == 'K')
                play.free_on_reply = true;
        else if (what == 'D')
                OPS.drain(play.vmm);
        else if (what == 'C' && OPS.reboot_cancel) {
                play.reboot_canceled = true;
                OPS.reboot_cancel(play.vmm);
        } else if (strchr("BPRWXQON", what))
                call(what, text, n);
        turn(false);
}

static void perform(const char *p, size_t size) {
        for (unsigned i = 0; i < STEPS_MAX && size >= 2; i++) {
                const char *next = memmem(p + 2, size - 2, "\n@", 2);
                size_t n = next ? (size_t) (next - p) - 2 : size - 2;

                if (p[0] == '@' && p[1])
                        step(p[1], p + 2 + (n > 0 && p[2] == ' '), n - (n > 0 && p[2] == ' '));
                size -= n + 2 + (next ? 1 : 0);
                p += n + 2 + 1;
        }
}

static void prepare(void) {
        if (event)
                return;
        fuzz_assert(sd_event_new(&event) >= 0);
        fuzz_assert(mkfifo(VMM_EVENTS, 0600) >= 0 || errno == EEXIST);
        listener = unix_listen(OPS.socket, SOCK_STREAM);
        fuzz_assert(listener >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_free_ char *text = fuzz_string(data, size);
        int waiting;

        prepare();
        play = (Play) { .peer = -EBADF, .fifo = open(VMM_EVENTS, O_RDWR|O_NONBLOCK|O_CLOEXEC), .free_on = _VMM_EVENT_MAX };
        fuzz_assert(play.fifo >= 0);
        fuzz_assert(OPS.connect(event, ".", on_event, NULL, &play.vmm) >= 0);
        turn(false);
        perform(text, size);
        free_vmm();
        for (unsigned i = 0; i < play.n_calls; i++)
                fuzz_assert(play.calls[i].answers == play.calls[i].accepted);
        hang_up();
        safe_close(play.fifo);
        while ((waiting = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
                close(waiting);
        return 0;
}
