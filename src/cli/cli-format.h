/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdio.h>

#include "basic/macro.h"

/* How things read best; rounded, and not meant to be parsed. Strings belong to the caller, NULL: no memory. */
char *format_bytes(uint64_t bytes);                     /* "512M", "33.2M", "512B" */
char *format_span(uint64_t usec);                       /* "1.250s", "5min 3s", "2d 4h" */
char *format_duration(uint64_t usec);                   /* "0.2ms", "20.9ms", "1.250s", "5min 3s": a measured time */
char *format_relative(uint64_t usec, uint64_t now);     /* "5min 3s ago", "in 20s", "now" */
char *format_timestamp(uint64_t usec);                  /* "Fri 2025-11-21 09:59:01 UTC", local time */

uint64_t now_usec(void);

/* Control characters for a terminal, or "" where there is none or NO_COLOR is set. */
typedef enum Color { COLOR_NONE, COLOR_GREEN, COLOR_YELLOW, COLOR_RED, COLOR_GRAY, COLOR_BOLD } Color;
bool colors_wanted(void);
const char *color_on(Color c);
const char *color_off(Color c);

/* A text table: cells row by row, columns of them in each; every column but the last is as wide as its widest cell. */
#define TABLE_COLUMNS_MAX 8
typedef struct Table {
        size_t columns;
        size_t widths[TABLE_COLUMNS_MAX];
        char **cells;
        Color *colors;
        size_t n;
} Table;

void table_done(Table *t);
int table_add_row(Table *t, Color color, const char *const *cells);
void table_print(const Table *t, FILE *f);

/* What a guest or VMM wrote, made harmless for a terminal: escape sequences and control characters other than newline,
 * carriage return, tab and backspace go, bytes that are not UTF-8 become '?'. It takes a stream piece by piece. */
typedef struct Filter {
        enum { FILTER_TEXT, FILTER_ESCAPE, FILTER_CSI, FILTER_STRING, FILTER_STRING_ESCAPE } state;
        uint8_t pending[4];             /* a character that is not whole yet */
        size_t n_pending;
} Filter;

/* out has room for 2 * n + 4 bytes; gives the number written. */
size_t filter_terminal(Filter *f, const void *in, size_t n, char *out);
