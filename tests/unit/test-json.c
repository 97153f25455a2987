/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "basic/json-util.h"
#include "basic/string-util.h"
#include "tap.h"

#define DEPTH 4

/* What is taken, and what it is as json-c writes it */
static const struct {
        const char *text, *plain;
} good[] = {
        { "null", "null" },
        { " true ", "true" },
        { "false\n", "false" },
        { "{}", "{}" },
        { "[ ]", "[]" },
        { "[1,\t-2 , 3]", "[1,-2,3]" },
        { "{\"a\": {\"b\": [null]}}", "{\"a\":{\"b\":[null]}}" },
        { "[[[[]]]]", "[[[[]]]]" },
        { "[[[[1]]]]", "[[[[1]]]]" },
        { "0", "0" },
        { "-0", "0" },
        { "9223372036854775807", "9223372036854775807" },
        { "-9223372036854775808", "-9223372036854775808" },
        { "18446744073709551615", "18446744073709551615" },
        { "1.5", "1.5" },
        { "1e2", "1e2" },
        { "-1.25E-2", "-1.25E-2" },
        { "1e308", "1e308" },
        { "\"\"", "\"\"" },
        { "\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"", "\"a\\\"\\\\/\\b\\f\\n\\r\\tA\"" },
        { "\"\\\\\"", "\"\\\\\"" },
        { "[\"\\\\\",\"x\"]", "[\"\\\\\",\"x\"]" },
        { "\"\\u00e4\\u20ac\\ud83d\\ude00\"", "\"ä€😀\"" },
        { "\"\\u00E4\"", "\"ä\"" },
        { "\"ä€😀\"", "\"ä€😀\"" },
        { "\"\x7f\"", "\"\x7f\"" },
        { "{\"a\":1,\"A\":2}", "{\"a\":1,\"A\":2}" },
        { "{\"\":1}", "{\"\":1}" },
        { "{\"ä\":1,\"ö\" : 2,\"\\u00fc\":3}", "{\"ä\":1,\"ö\":2,\"ü\":3}" },
        { "{\"a\":{\"a\":1},\"b\":[{\"a\":1},{\"a\":2}]}", "{\"a\":{\"a\":1},\"b\":[{\"a\":1},{\"a\":2}]}" },
        { "{\"a\":\"a\",\"b\":\"a\"}", "{\"a\":\"a\",\"b\":\"a\"}" },
        { "[\"'\",\"NaN\",\"{\",\"]\",\",\",\"01\",\"/*\"]", "[\"'\",\"NaN\",\"{\",\"]\",\",\",\"01\",\"/*\"]" },
        { "-0.0", "-0.0" },
        { "1e-400", "1e-400" },
};

static const struct {
        const char *text, *message;
} bad[] = {
        { "", "x: unexpected end of data (line 1, column 1)" },
        { "  \n ", "x: unexpected end of data (line 2, column 2)" },
        { "{", "x: unexpected end of data (line 1, column 2)" },
        { "[1", "x: unexpected end of data (line 1, column 3)" },
        { "[1,]", "x: unexpected character (line 1, column 4)" },
        { "[1 2]", "x: array value separator ',' expected (line 1, column 4)" },
        { "{\"a\":1,}", "x: unexpected character (line 1, column 8)" },
        { "{\"a\" 1}", "x: object property name separator ':' expected (line 1, column 6)" },
        { "{\"a\":1 \"b\":2}", "x: object value separator ',' expected (line 1, column 8)" },
        { "{a:1}", "x: quoted object property name expected (line 1, column 2)" },
        { "{'a':1}", "x: strings must be in double quotes (line 1, column 2)" },
        { "'a'", "x: strings must be in double quotes (line 1, column 1)" },
        { "1 2", "x: unexpected character (line 1, column 3)" },
        { "{}\n{}", "x: unexpected character (line 2, column 1)" },
        { "nul", "x: unexpected end of data (line 1, column 4)" },
        { "nulll", "x: unexpected character (line 1, column 5)" },
        { "True", "x: boolean expected (line 1, column 1)" },
        { "NaN", "x: Infinity and NaN are no numbers here (line 1, column 1)" },
        { "Infinity", "x: Infinity and NaN are no numbers here (line 1, column 1)" },
        { "-Infinity", "x: Infinity and NaN are no numbers here (line 1, column 2)" },
        { "/* */ 1", "x: unexpected character (line 1, column 1)" },
        { "1 // one", "x: unexpected character (line 1, column 3)" },
        { "# 1", "x: unexpected character (line 1, column 1)" },
        { "\xef\xbb\xbf{}", "x: unexpected character (line 1, column 1)" },
        { "\v1", "x: unexpected character (line 1, column 1)" },
        { "01", "x: a number must not begin with 0 (line 1, column 1)" },
        { "[-01]", "[0]: a number must not begin with 0 (line 1, column 2)" },
        { "+1", "x: unexpected character (line 1, column 1)" },
        { ".5", "x: unexpected character (line 1, column 1)" },
        { "1.", "x: a decimal point must be between digits (line 1, column 2)" },
        { "1.x", "x: a decimal point must be between digits (line 1, column 2)" },
        { "-", "x: unexpected end of data (line 1, column 2)" },
        { "1e", "x: unexpected end of data (line 1, column 3)" },
        { "1e+-1", "x: number expected (line 1, column 4)" },
        { "0x10", "x: unexpected character (line 1, column 2)" },
        { "18446744073709551616", "x: this number is too large (line 1, column 1)" },
        { "{\"a\":{\"b\":[0,-9223372036854775809]}}", "a.b[1]: this number is too large (line 1, column 14)" },
        { "[1e400]", "[0]: this number is too large (line 1, column 2)" },
        { "1e99999999999999999999", "x: this number is too large (line 1, column 1)" },
        { "{\"a\":1,\"a\":2}", "a: this key is there twice, write it once (line 1, column 8)" },
        { "{\"a\":1,\"\\u0061\":2}", "a: this key is there twice, write it once (line 1, column 8)" },
        { "{\"a\":null,\"a\":null}", "a: this key is there twice, write it once (line 1, column 11)" },
        { "[{\"b\":{\"c\":1,\n\"c\":1}}]", "[0].b.c: this key is there twice, write it once (line 2, column 1)" },
        { "{\"a\":\"\\u0000\"}", "a: a NUL character (\\u0000) is not allowed (line 1, column 7)" },
        { "{\"\\u0000\":1}", "x: a NUL character (\\u0000) is not allowed (line 1, column 3)" },
        { "\"\\ud800\"", "x: half of a surrogate pair is not a character (line 1, column 2)" },
        { "\"\\udc00\\ud800\"", "x: half of a surrogate pair is not a character (line 1, column 2)" },
        { "\"\\ud800\\u0041\"", "x: half of a surrogate pair is not a character (line 1, column 2)" },
        { "\"\xed\xa0\x80\"", "x: this is not valid UTF-8 (line 1, column 2)" },
        { "\"\xc0\xaf\"", "x: this is not valid UTF-8 (line 1, column 2)" },
        { "\"\xff\"", "x: this is not valid UTF-8 (line 1, column 2)" },
        { "\"\xf4\x90\x80\x80\"", "x: this is not valid UTF-8 (line 1, column 2)" },
        { "{\"a\":\"x\xe2\x82\"}", "a: this is not valid UTF-8 (line 1, column 8)" },
        { "\"\xe2\x82", "x: this is not valid UTF-8 (line 1, column 2)" },
        { "\"a\nb\"", "x: a control character must be written as \\uXXXX (line 1, column 3)" },
        { "\"\t\"", "x: a control character must be written as \\uXXXX (line 1, column 2)" },
        { "\"abc", "x: unexpected end of data (line 1, column 5)" },
        { "\"abc\\\"", "x: unexpected end of data (line 1, column 7)" },
        { "\"\\", "x: unexpected end of data (line 1, column 3)" },
        { "\"\\x41\"", "x: invalid string sequence (line 1, column 3)" },
        { "\"\\u12g4\"", "x: invalid string sequence (line 1, column 6)" },
        { "\"\\u12\"", "x: invalid string sequence (line 1, column 6)" },
        { "[[[[[]]]]]", "x: the nesting is too deep (line 1, column 5)" },
        { "{\"a\":{\"a\":{\"a\":{\"a\":{}}}}}", "x: the nesting is too deep (line 1, column 21)" },
        { "]", "x: this bracket was not opened (line 1, column 1)" },
        { "[}", "x: unexpected character (line 1, column 2)" },
        { "{]", "x: quoted object property name expected (line 1, column 2)" },
        { "[1]]", "x: this bracket was not opened (line 1, column 4)" },
        { "[\"a\":1]", "x: array value separator ',' expected (line 1, column 5)" },
        { "{\"a\":\"b\":1}", "x: object value separator ',' expected (line 1, column 9)" },
        { "{\"a\"}", "x: object property name separator ':' expected (line 1, column 5)" },
        { "{\"a\":}", "x: unexpected character (line 1, column 6)" },
        { "{,}", "x: quoted object property name expected (line 1, column 2)" },
        { "[,1]", "x: unexpected character (line 1, column 2)" },
        { "NULL", "x: null expected (line 1, column 2)" },
        { "[nan]", "x: null expected (line 1, column 3)" },
        { "infinity", "x: unexpected character (line 1, column 1)" },
        { "[1,/**/2]", "x: unexpected character (line 1, column 4)" },
        { "00", "x: a number must not begin with 0 (line 1, column 1)" },
        { "-00", "x: a number must not begin with 0 (line 1, column 1)" },
        { "01.5", "x: a number must not begin with 0 (line 1, column 1)" },
        { "-.5", "x: a decimal point must be between digits (line 1, column 2)" },
        { "1.e5", "x: a decimal point must be between digits (line 1, column 2)" },
        { "[1.2.3]", "x: number expected (line 1, column 5)" },
        { "[1e5.5]", "x: number expected (line 1, column 5)" },
        { "[1-2]", "x: number expected (line 1, column 3)" },
        { "-1e400", "x: this number is too large (line 1, column 1)" },
        { "{\"ä\":1,\"\\u00e4\":2}", "ä: this key is there twice, write it once (line 1, column 9)" },
        { "{\"a\":{\"a\":1},\"b\":0,\"a\":[]}", "a: this key is there twice, write it once (line 1, column 20)" },
        { "{\"b\":1,\"\\u0000\":1}", "x: a NUL character (\\u0000) is not allowed (line 1, column 9)" },
        { "{\"a\tb\":1}", "x: a control character must be written as \\uXXXX (line 1, column 4)" },
        { "\"\\\x01\"", "x: invalid string sequence (line 1, column 3)" },
        { "\"\\ä\"", "x: this is not valid UTF-8 (line 1, column 4)" },
        { "ä", "x: unexpected character (line 1, column 1)" },
        { "\"\\ud83d\"", "x: half of a surrogate pair is not a character (line 1, column 2)" },
        { "\"\\ud83d\\u12\"", "x: half of a surrogate pair is not a character (line 1, column 2)" },
        { "\"\\ud83d\\ud83d\\ude00\"", "x: half of a surrogate pair is not a character (line 1, column 2)" },
        { "\"\\ud836\\udc00\"", "x: this character must not be written as \\uXXXX\\uXXXX (line 1, column 2)" },
        { "\"\\uDBF7\\uDFFF\"", "x: this character must not be written as \\uXXXX\\uXXXX (line 1, column 2)" },
        { "\"\\u", "x: unexpected end of data (line 1, column 4)" },
        { "\"\\ud83d\\", "x: half of a surrogate pair is not a character (line 1, column 2)" },
};

static void test_good(void) {
        for (size_t i = 0; i < ELEMENTSOF(good); i++) {
                _cleanup_json_ json_object *o = NULL;
                _cleanup_free_ char *error = NULL;
                int r = json_parse_named("x", good[i].text, strlen(good[i].text), DEPTH, &o, &error);

                ok(r == 0 && !error, "taken: %s", good[i].plain);
                is_str(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
                       good[i].plain, "read as %s", good[i].plain);
        }
}

static void test_bad(void) {
        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                size_t n = strlen(bad[i].text);
                /* Without the NUL behind it, so that the sanitizer sees who reads too far. */
                _cleanup_free_ char *exact = malloc(n ?: 1), *error = NULL;
                json_object *o = (json_object *) &exact;

                memcpy(exact, bad[i].text, n);
                is_int(json_parse_named("x", exact, n, DEPTH, &o, &error), -EINVAL, "refused: %s", bad[i].message);
                is_str(error, bad[i].message, "with its message");
                ok(o == (json_object *) &exact, "and nothing else");
        }
}

static void test_nul(void) {
        _cleanup_free_ char *e1 = NULL, *e2 = NULL, *e3 = NULL;
        json_object *o;

        is_int(json_parse_strict("{\"a\":\"x\0y\"}", 11, DEPTH, &o, &e1), -EINVAL, "a NUL in a string");
        is_str(e1, "JSON: a NUL byte is not allowed (line 1, column 8)", "with its message");
        is_int(json_parse_strict("{}\0", 3, DEPTH, &o, &e2), -EINVAL, "a NUL behind the text");
        is_str(e2, "JSON: a NUL byte is not allowed (line 1, column 3)", "with its message");
        is_int(json_parse_strict("\"\\\0\"", 4, DEPTH, &o, &e3), -EINVAL, "a NUL behind a backslash");
}

/* Each text cut off anywhere is read without a fault, and each byte replaced as well. */
static void test_mutilated(void) {
        unsigned n = 0;

        for (size_t i = 0; i < ELEMENTSOF(good); i++) {
                size_t l = strlen(good[i].text);

                for (size_t cut = 0; cut <= l; cut++)
                        for (int c = 0; c < 256; c++, n++) {
                                _cleanup_json_ json_object *o = NULL;
                                _cleanup_free_ char *exact = malloc(cut + 1), *error = NULL;

                                memcpy(exact, good[i].text, cut);
                                exact[cut] = (char) c;
                                if (json_parse_strict(exact, cut + 1, DEPTH, &o, &error) < 0 && !error)
                                        ok(false, "a refusal without a message");
                        }
        }
        ok(n > 0, "%u mutilated texts", n);
}

static void test_getters(void) {
        _cleanup_json_ json_object *o = NULL;
        _cleanup_free_ char *error = NULL;
        const char *text = "{\"s\":\"x\",\"i\":-5,\"b\":true,\"n\":null}";

        check(json_parse_strict(text, strlen(text), DEPTH, &o, &error) == 0);
        is_str(json_get_string(o, "s", "d"), "x", "a string");
        is_str(json_get_string(o, "i", "d"), "d", "not a string");
        is_str(json_get_string(o, "n", "d"), "d", "null");
        is_str(json_get_string(o, "z", NULL), NULL, "missing");
        is_str(json_get_string(NULL, "z", "d"), "d", "of nothing");
        is_int(json_get_int(o, "i", 1), -5, "an integer");
        is_int(json_get_int(o, "s", 1), 1, "not an integer");
        check(json_get_bool(o, "b", false));
        check(json_get_bool(o, "i", true));
        check(!json_get(json_get(o, "s"), "x"));
}

static void test_show(void) {
        static const struct {
                const char *text, *shown;
        } cases[] = {
                { "\"a\"", "\"a\"" },
                { "\"a\\nb\\u007f\\u0085\"", "\"a\\x0ab\\x7f\\xc2\\x85\"" },
                { "-5", "-5" },
                { "1.50", "1.50" },
                { "null", "null" },
                { "true", "true" },
                { "{\"a\":1}", "an object" },
                { "[]", "an array" },
        };
        char buf[JSON_SHOW_MAX], many[4096];

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_json_ json_object *o = NULL;
                _cleanup_free_ char *error = NULL;

                check(json_parse_strict(cases[i].text, strlen(cases[i].text), DEPTH, &o, &error) == 0);
                is_str(json_show(o, buf), cases[i].shown, "shown as %s", cases[i].shown);
        }
        for (int c = 1; c < 256; c++) {
                memset(many, c, sizeof(many) - 1);
                many[sizeof(many) - 1] = 0;
                if (strlen(json_show_key(many, buf)) >= JSON_SHOW_MAX || !endswith(buf, "…"))
                        ok(false, "long keys of byte %d are cut off", c);
        }
}

int main(void) {
        test_good();
        test_bad();
        test_nul();
        test_mutilated();
        test_getters();
        test_show();
        return done_testing();
}
