/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* It would take the call for one of curl_easy_setopt() itself. */
#ifndef CURL_DISABLE_TYPECHECK
#define CURL_DISABLE_TYPECHECK
#endif
#include <curl/curl.h>

/* libcurl, loaded when it is first needed: it brings some thirty libraries, which cost a daemon that manages QEMU alone more memory
 * than all its VMs. */
typedef struct Curl {
        typeof(curl_global_init) *global_init;
        typeof(curl_slist_append) *slist_append;
        typeof(curl_easy_init) *easy_init;
        typeof(curl_easy_setopt) *easy_setopt;
        typeof(curl_easy_getinfo) *easy_getinfo;
        typeof(curl_easy_cleanup) *easy_cleanup;
        typeof(curl_multi_init) *multi_init;
        typeof(curl_multi_setopt) *multi_setopt;
        typeof(curl_multi_assign) *multi_assign;
        typeof(curl_multi_add_handle) *multi_add_handle;
        typeof(curl_multi_remove_handle) *multi_remove_handle;
        typeof(curl_multi_socket_action) *multi_socket_action;
        typeof(curl_multi_info_read) *multi_info_read;
        typeof(curl_multi_cleanup) *multi_cleanup;
} Curl;

extern Curl curl;

/* Once a process, and nothing is ever given back. -ENOPKG: there is no libcurl that will do. */
int curl_load(void);
