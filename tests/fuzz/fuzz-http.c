/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <sys/socket.h>
#include <systemd/sd-event.h>

#include "basic/fd-util.h"
#include "bus/http.h"
#include "vmm/http-vmm.h"

#include "fuzz.h"

/* What a server answers, byte for byte, to each of two requests: both end, once, and what comes is bounded. */

typedef struct Answers {
        Http *http;
        unsigned n;
        bool free;
} Answers;

static void on_answer(void *userdata, int error, unsigned status, const char *body, size_t size) {
        Answers *a = userdata;
        _cleanup_free_ char *words = NULL;

        a->n++;
        fuzz_assert(error <= 0 && error != -ETIMEDOUT);
        fuzz_assert(error < 0 ? !body && size == 0 && status == 0 : body && size <= HTTP_BODY_MAX && body[size] == 0 && status >= 200);
        if (error == 0) {
                words = http_vmm_words(body, size);
                fuzz_assert(!words || strlen(words) <= 1024);
        }
        if (a->free)
                a->http = http_free(a->http);
}

static int listen_at(const char *path) {
        int fd = unix_listen(path, SOCK_STREAM);

        fuzz_assert(fd >= 0);
        return fd;
}

/* Takes a request, if there is one, and answers it. */
static void serve(int listener, const uint8_t *data, size_t size) {
        _cleanup_close_ int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        char request[4096];

        if (fd < 0)
                return;
        fuzz_assert(fd_is_unix_socket(fd, SOCK_STREAM, false));
        (void) recv(fd, request, sizeof request, 0);
        (void) send(fd, data, size, MSG_NOSIGNAL|MSG_DONTWAIT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        static sd_event *event;
        static int listener = -EBADF;
        Answers a = { .free = size > 0 && data[size - 1] == '!' };
        unsigned want = 2;

        if (!event)
                fuzz_assert(sd_event_new(&event) >= 0);
        if (listener < 0)
                listener = listen_at("http");

        fuzz_assert(http_new(event, "http", &a.http) >= 0);
        fuzz_assert(http_request(a.http, "GET", "/a", NULL, USEC_INFINITY, on_answer, &a) >= 0);
        fuzz_assert(http_request(a.http, "PUT", "/b", "{}", USEC_INFINITY, on_answer, &a) >= 0);
        for (unsigned i = 0; a.n < want; i++) {
                fuzz_assert(i < 10000);
                (void) sd_event_run(event, 100);
                serve(listener, data, size);
        }
        http_free(a.http);
        fuzz_assert(a.n == want);
        return 0;
}
