/*
 * A PKCS#11 module for tests that stands in front of another one (FRONT_MODULE) and does what real tokens do
 * and SoftHSM does not: it goes away, locks its PIN, lacks a mechanism, hangs. Before every call that it changes
 * it reads the file FRONT_CONTROL, lines of a word and a hexadecimal number:
 *
 *   gone 1           no token is present, and sessions end with CKR_DEVICE_REMOVED
 *   login CODE       C_Login returns CODE, without asking the token
 *   flags BITS       these are set in the flags of every token (CK_TOKEN_INFO)
 *   lacks MECHANISM  C_GetMechanismInfo does not know it
 *   create CODE      C_CreateObject returns CODE
 *   setattr CODE     C_SetAttributeValue returns CODE
 *   hang 1           C_OpenSession does not return while the line stands
 *
 * Every call of C_Login is a line of FRONT_CONTROL.logins.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong;

/* CK_FUNCTION_LIST of PKCS#11 2.40, section 3.6: a version and 68 functions in this order. */
enum { GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, GET_MECHANISM_INFO = 8, OPEN_SESSION = 12, LOGIN = 18,
       CREATE_OBJECT = 20, SET_ATTRIBUTE_VALUE = 25, FUNCTIONS = 68 };
struct list {
    unsigned char major, minor;
    void *function[FUNCTIONS];
};
/* CK_TOKEN_INFO, section 3.2: four padded texts of 96 bytes in all, then the flags. */
enum { FLAGS_AT = 96 };
enum { OK = 0, DEVICE_REMOVED = 0x32, MECHANISM_INVALID = 0x70 };

static struct list *behind;
static struct list front;

/* The number behind a word of the control file; 0 where it is not there. */
static ulong told(const char *word) {
    char name[32];
    ulong value, found = 0;
    FILE *file = fopen(getenv("FRONT_CONTROL"), "r");
    if (!file) abort();
    while (fscanf(file, "%31s %lx", name, &value) == 2)
        if (!strcmp(name, word)) found = value;
    fclose(file);
    return found;
}

static ulong get_slot_list(unsigned char with_token, ulong *slots, ulong *count) {
    if (told("gone")) {
        *count = 0;
        return OK;
    }
    return ((ulong (*)(unsigned char, ulong *, ulong *))behind->function[GET_SLOT_LIST])(with_token, slots, count);
}

static ulong get_token_info(ulong slot, unsigned char *info) {
    ulong flags, code = ((ulong (*)(ulong, unsigned char *))behind->function[GET_TOKEN_INFO])(slot, info);
    if (code == OK) {
        memcpy(&flags, info + FLAGS_AT, sizeof flags);
        flags |= told("flags");
        memcpy(info + FLAGS_AT, &flags, sizeof flags);
    }
    return code;
}

static ulong get_mechanism_info(ulong slot, ulong mechanism, void *info) {
    if (told("lacks") == mechanism) return MECHANISM_INVALID;
    return ((ulong (*)(ulong, ulong, void *))behind->function[GET_MECHANISM_INFO])(slot, mechanism, info);
}

static ulong open_session(ulong slot, ulong flags, void *application, void *notify, ulong *session) {
    while (told("hang")) usleep(10000);
    if (told("gone")) return DEVICE_REMOVED;
    return ((ulong (*)(ulong, ulong, void *, void *, ulong *))behind->function[OPEN_SESSION])(
        slot, flags, application, notify, session);
}

static ulong login(ulong session, ulong user, void *pin, ulong length) {
    char path[4096];
    FILE *file;
    ulong code = told("login");
    snprintf(path, sizeof path, "%s.logins", getenv("FRONT_CONTROL"));
    file = fopen(path, "a");
    if (!file) abort();
    fputs("login\n", file);
    fclose(file);
    if (code) return code;
    return ((ulong (*)(ulong, ulong, void *, ulong))behind->function[LOGIN])(session, user, pin, length);
}

static ulong create_object(ulong session, void *template, ulong count, ulong *object) {
    ulong code = told("create");
    if (code) return code;
    return ((ulong (*)(ulong, void *, ulong, ulong *))behind->function[CREATE_OBJECT])(session, template, count, object);
}

static ulong set_attribute_value(ulong session, ulong object, void *template, ulong count) {
    ulong code = told("setattr");
    if (code) return code;
    return ((ulong (*)(ulong, ulong, void *, ulong))behind->function[SET_ATTRIBUTE_VALUE])(session, object, template, count);
}

ulong C_GetFunctionList(struct list **list) {
    void *library = dlopen(getenv("FRONT_MODULE"), RTLD_NOW | RTLD_LOCAL);
    ulong (*get)(struct list **) = library ? (ulong (*)(struct list **))dlsym(library, "C_GetFunctionList") : NULL;
    if (!get) abort();
    ulong code = get(&behind);
    if (code != OK) return code;
    front = *behind;
    front.function[GET_SLOT_LIST] = (void *)get_slot_list;
    front.function[GET_TOKEN_INFO] = (void *)get_token_info;
    front.function[GET_MECHANISM_INFO] = (void *)get_mechanism_info;
    front.function[OPEN_SESSION] = (void *)open_session;
    front.function[LOGIN] = (void *)login;
    front.function[CREATE_OBJECT] = (void *)create_object;
    front.function[SET_ATTRIBUTE_VALUE] = (void *)set_attribute_value;
    *list = &front;
    return OK;
}
