/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "basic/fd-util.h"
#include "basic/string-util.h"
#include "vmm/http-vmm.h"
#include "vmm/vmm-object.h"

#define READ_SIZE (16U * 1024U)
#define DRAIN_MAX (1024U * 1024U)

int http_vmm_error(int error, unsigned status) {
        if (error == -ECONNREFUSED || error == -ENOENT || error == -ECONNRESET)
                return -EPIPE;
        if (error < 0)
                return error;
        return status >= 200 && status < 300 ? 0 : -EREMOTEIO;
}

/* No more of them than are told */
static char *join_strings(json_object *array) {
        _cleanup_strv_free_ char **words = NULL;

        for (size_t i = 0, n = 0; i < json_object_array_length(array) && n <= VMM_WORDS_MAX; i++) {
                json_object *o = json_object_array_get_idx(array, i);

                if (!json_object_is_type(o, json_type_string))
                        continue;
                if (strv_extend(&words, json_object_get_string(o)) < 0)
                        return NULL;
                n += (size_t) json_object_get_string_len(o) + 2;
        }
        return words ? strv_join(words, ": ") : NULL;
}

char *http_vmm_words(const char *body, size_t size) {
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *joined = NULL;
        const char *words = NULL;

        if (json_parse_bounded(body, size, &o) >= 0) {
                if (json_object_is_type(o, json_type_array))
                        words = joined = join_strings(o);
                else
                        words = json_get_string(o, "fault_message", NULL);
        }
        if (!isempty(words))
                return vmm_words(words, strlen(words));

        while (size > 0 && strchr("\r\n ", body[size - 1]))
                size--;
        return size > 0 ? vmm_words(body, size) : NULL;
}

/* The stream */

struct VMMStream {
        unsigned n_ref;         /* another one is held while callbacks run */
        bool freed, reading;
        int fd;
        sd_event_source *io;
        const char *separator;
        vmm_stream_cb cb;
        void *userdata;

        char *input;
        size_t size, allocated;
        bool skipping;          /* the record was too long: up to the next separator */
};

static VMMStream *stream_unref(VMMStream *s) {
        if (--s->n_ref > 0)
                return NULL;
        free(s->input);
        free(s);
        return NULL;
}

static void stream_unrefp(VMMStream **s) {
        if (*s)
                stream_unref(*s);
}

static void stream_close(VMMStream *s) {
        s->io = sd_event_source_disable_unref(s->io);
        s->fd = safe_close(s->fd);
}

VMMStream *vmm_stream_free(VMMStream *s) {
        if (!s)
                return NULL;

        s->freed = true;
        stream_close(s);
        return stream_unref(s);
}

static void handle_record(VMMStream *s, const char *record, size_t n) {
        _cleanup_json_ json_object *o = NULL;

        while (n > 0 && (record[n - 1] == '\n' || record[n - 1] == '\r'))
                n--;
        while (n > 0 && (*record == '\n' || *record == '\r')) {
                record++;
                n--;
        }
        /* A full FIFO takes the separator of what it does not take. */
        if (n == 0 || json_parse_bounded(record, n, &o) < 0 || !json_object_is_type(o, json_type_object))
                s->cb(s->userdata, NULL);
        else
                s->cb(s->userdata, o);
}

/* Handles the whole records that there are; `from` is where bytes not seen before begin. */
static void handle_input(VMMStream *s, size_t from) {
        size_t length = strlen(s->separator), start = 0;

        from -= MIN(from, length - 1);
        while (!s->freed) {
                const char *end = memmem(s->input + from, s->size - from, s->separator, length);
                size_t n;

                if (!end)
                        break;
                n = (size_t) (end - s->input) - start;
                if (!s->skipping)
                        handle_record(s, s->input + start, n);
                else
                        s->cb(s->userdata, NULL);
                s->skipping = false;
                from = start = start + n + length;
        }

        s->size -= start;
        memmove(s->input, s->input + start, s->size);
        s->skipping |= s->size >= VMM_STREAM_RECORD_MAX;
        if (s->skipping && s->size >= length) {
                memmove(s->input, s->input + s->size - (length - 1), length - 1);
                s->size = length - 1;
        }
}

/* Room for what comes next */
static int stream_reserve(VMMStream *s) {
        size_t want = s->size + READ_SIZE;
        char *p;

        if (want <= s->allocated)
                return 0;
        p = realloc(s->input, want);
        if (!p)
                return -ENOMEM;
        s->input = p;
        s->allocated = want;
        return 0;
}

/* There may be a thousand that wait for a record. */
static void stream_shrink(VMMStream *s) {
        if (s->size > 0)
                return;
        free(TAKE_PTR(s->input));
        s->allocated = 0;
}

/* Reads once. Gives the number of bytes, 0 when there are none now or it has ended. */
static size_t stream_read(VMMStream *s) {
        size_t before = s->size;
        ssize_t n;

        if (stream_reserve(s) < 0) { /* the VMM drops what does not fit in */
                stream_close(s);
                return 0;
        }
        n = read(s->fd, s->input + before, READ_SIZE);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n <= 0) { /* the VMM, which alone has it open for writing, has ended */
                stream_close(s);
                return 0;
        }

        s->size += (size_t) n;
        s->reading = true;
        handle_input(s, before);
        s->reading = false;
        stream_shrink(s);
        return (size_t) n;
}

static int on_stream_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
        VMMStream *s = userdata;
        _cleanup_(stream_unrefp) _unused_ VMMStream *ref = s;

        s->n_ref++;
        stream_read(s);
        return 0;
}

void vmm_stream_drain(VMMStream *s) {
        _cleanup_(stream_unrefp) _unused_ VMMStream *ref = s;

        if (!s)
                return;
        s->n_ref++;
        /* From within a callback: the reader above it goes on afterwards. */
        for (size_t n = 1, sum = 0; !s->reading && s->fd >= 0 && n > 0 && sum < DRAIN_MAX; sum += n)
                n = stream_read(s);
}

/* The VMM may write to the directory, so what stands there need not be what was put there. */
static int open_fifo(const char *dir) {
        _cleanup_free_ char *path = strjoinf("%s/%s", dir, VMM_EVENTS);
        _cleanup_close_ int fd = -EBADF;
        struct stat st;

        if (!path)
                return -ENOMEM;
        fd = open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0)
                return -errno;
        return S_ISFIFO(st.st_mode) ? TAKE_FD(fd) : -EBADMSG;
}

int vmm_stream_new(sd_event *e, const char *dir, const char *separator, vmm_stream_cb cb, void *userdata, VMMStream **ret) {
        _cleanup_(vmm_stream_freep) VMMStream *s = NULL;
        int r;

        s = new(VMMStream, 1);
        if (!s)
                return -ENOMEM;
        *s = (VMMStream) {
                .n_ref = 1,
                .fd = open_fifo(dir),
                .separator = separator,
                .cb = cb,
                .userdata = userdata,
        };
        if (s->fd < 0)
                return s->fd;
        r = sd_event_add_io(e, &s->io, s->fd, EPOLLIN, on_stream_io, s);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(s);
        return 0;
}
