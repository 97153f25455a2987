/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include "basic/macro.h"
#include "bus/curl-load.h"

Curl curl;

static const struct {
        const char *name;
        void **function;
} functions[] = {
        { "curl_global_init",           (void **) &curl.global_init },
        { "curl_slist_append",          (void **) &curl.slist_append },
        { "curl_easy_init",             (void **) &curl.easy_init },
        { "curl_easy_setopt",           (void **) &curl.easy_setopt },
        { "curl_easy_getinfo",          (void **) &curl.easy_getinfo },
        { "curl_easy_cleanup",          (void **) &curl.easy_cleanup },
        { "curl_multi_init",            (void **) &curl.multi_init },
        { "curl_multi_setopt",          (void **) &curl.multi_setopt },
        { "curl_multi_assign",          (void **) &curl.multi_assign },
        { "curl_multi_add_handle",      (void **) &curl.multi_add_handle },
        { "curl_multi_remove_handle",   (void **) &curl.multi_remove_handle },
        { "curl_multi_socket_action",   (void **) &curl.multi_socket_action },
        { "curl_multi_info_read",       (void **) &curl.multi_info_read },
        { "curl_multi_cleanup",         (void **) &curl.multi_cleanup },
};

static void *open_library(void) {
        static const char *const names[] = { "libcurl.so.4", "libcurl-gnutls.so.4" };
        void *library = NULL;

        for (size_t i = 0; i < ELEMENTSOF(names) && !library; i++)
                library = dlopen(names[i], RTLD_NOW|RTLD_LOCAL|RTLD_NODELETE);
        return library;
}

/* Relocating thirty libraries, and their constructors, touch megabytes of them that nobody needs again: what does comes back from the page
 * cache. */
static int give_back(struct dl_phdr_info *info, size_t size, void *userdata) {
        uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);

        for (size_t i = 0; i < info->dlpi_phnum; i++) {
                const ElfW(Phdr) *p = info->dlpi_phdr + i;
                uintptr_t begin = (info->dlpi_addr + p->p_vaddr) & ~(page - 1), end = info->dlpi_addr + p->p_vaddr + p->p_memsz;

                if (p->p_type == PT_LOAD && !(p->p_flags & PF_W))
                        (void) madvise((void *) begin, end - begin, MADV_DONTNEED);
        }
        return 0;
}

int curl_load(void) {
        static bool done;
        void *library;

        if (done)
                return 0;
        library = open_library();
        if (!library)
                return -ENOPKG;
        for (size_t i = 0; i < ELEMENTSOF(functions); i++) {
                *functions[i].function = dlsym(library, functions[i].name);
                if (!*functions[i].function)
                        return -ENOPKG;
        }

        /* Without TLS, for there is none on UNIX sockets */
        if (curl.global_init(CURL_GLOBAL_NOTHING) != CURLE_OK)
                return -ENOMEM;
        (void) dl_iterate_phdr(give_back, NULL);
        done = true;
        return 0;
}
