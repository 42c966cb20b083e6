/* A PKCS#11 library that is SoftHSM2 with faults. Each fault is on while a file named after it is in the folder of the test; the file
 * holds a number. Knows only as much of the standard's structures as the faults need. */

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;

enum { GET_INFO = 2, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, CLOSE_SESSION = 13, LOGIN = 18, CREATE_OBJECT = 20, DESTROY_OBJECT = 22,
       SET_ATTRIBUTE_VALUE = 25, GENERATE_KEY = 58, GENERATE_KEY_PAIR = 59, FUNCTIONS = 68 };
enum { OK = 0, DEVICE_MEMORY = 0x31, DEVICE_REMOVED = 0x32, MECHANISM_INVALID = 0x70 };
enum { COUNT_LOW = 0x10000 };

struct list {
    unsigned char version[2];
    void *functions[FUNCTIONS];
};

static struct list list;
static struct list *softhsm;
static atomic_long open_sessions, changes;

/* The number in the file of a fault, -1 without one. */
static long fault(const char *name)
{
    char path[4096];
    long value = -1;
    snprintf(path, sizeof path, "%s/fault-%s", getenv("AZIOT_TOKEN_TEST_FOLDER"), name);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%ld", &value) != 1)
            abort();
        fclose(file);
    }
    return value;
}

/* After so many changes no other succeeds: what is on the token is what a kill would have left. */
static int is_cut_off(void)
{
    long most = fault("changes");
    if (most < 0) {
        changes = 0;
        return 0;
    }
    return changes++ >= most;
}

#define REAL(type, number) ((ulong_t (*) type)softhsm->functions[number])

static ulong_t initialize(void *arguments)
{
    long value = fault("initialize");
    return value >= 0 ? (ulong_t)value : REAL((void *), 0)(arguments);
}

static ulong_t get_info(unsigned char *info)
{
    ulong_t value = REAL((unsigned char *), GET_INFO)(info);
    if (fault("maker") >= 0)
        memcpy(info + 2, "another", 7);
    return value;
}

static ulong_t get_token_info(ulong_t slot, unsigned char *info)
{
    ulong_t value = REAL((ulong_t, unsigned char *), GET_TOKEN_INFO)(slot, info);
    if (fault("count_low") >= 0)
        *(ulong_t *)(info + 96) |= COUNT_LOW;
    return value;
}

static ulong_t open_session(ulong_t slot, ulong_t flags, void *application, void *notify, ulong_t *session)
{
    long value = fault("open"), most = fault("sessions");
    if (value >= 0)
        return (ulong_t)value;
    if (++open_sessions > most && most >= 0) {
        --open_sessions;
        return DEVICE_MEMORY;
    }
    return REAL((ulong_t, ulong_t, void *, void *, ulong_t *), OPEN_SESSION)(slot, flags, application, notify, session);
}

static ulong_t close_session(ulong_t session)
{
    --open_sessions;
    return REAL((ulong_t), CLOSE_SESSION)(session);
}

static ulong_t login(ulong_t session, ulong_t user, void *pin, ulong_t length)
{
    long value = fault("login");
    return value >= 0 ? (ulong_t)value : REAL((ulong_t, ulong_t, void *, ulong_t), LOGIN)(session, user, pin, length);
}

static ulong_t create_object(ulong_t session, void *attributes, ulong_t count, ulong_t *object)
{
    return is_cut_off() ? DEVICE_REMOVED : REAL((ulong_t, void *, ulong_t, ulong_t *), CREATE_OBJECT)(session, attributes, count, object);
}

static ulong_t destroy_object(ulong_t session, ulong_t object)
{
    return is_cut_off() ? DEVICE_REMOVED : REAL((ulong_t, ulong_t), DESTROY_OBJECT)(session, object);
}

static ulong_t set_attribute_value(ulong_t session, ulong_t object, void *attributes, ulong_t count)
{
    long value = fault("relabel");
    if (value >= 0)
        return (ulong_t)value;
    return is_cut_off() ? DEVICE_REMOVED : REAL((ulong_t, ulong_t, void *, ulong_t), SET_ATTRIBUTE_VALUE)(session, object, attributes, count);
}

static ulong_t generate_key(ulong_t session, void *mechanism, void *attributes, ulong_t count, ulong_t *object)
{
    long delay = fault("slow");
    if (delay >= 0)
        usleep((useconds_t)delay * 1000);
    if (is_cut_off())
        return DEVICE_REMOVED;
    return REAL((ulong_t, void *, void *, ulong_t, ulong_t *), GENERATE_KEY)(session, mechanism, attributes, count, object);
}

static ulong_t generate_key_pair(ulong_t session, void *mechanism, void *public, ulong_t public_count, void *private, ulong_t private_count,
                                 ulong_t *public_key, ulong_t *private_key)
{
    if (fault("pairs") >= 0)
        return MECHANISM_INVALID;
    if (is_cut_off())
        return DEVICE_REMOVED;
    return REAL((ulong_t, void *, void *, ulong_t, void *, ulong_t, ulong_t *, ulong_t *), GENERATE_KEY_PAIR)(
        session, mechanism, public, public_count, private, private_count, public_key, private_key);
}

ulong_t C_GetFunctionList(struct list **result)
{
    void *library = dlopen(SOFTHSM, RTLD_LAZY | RTLD_LOCAL);
    ulong_t (*get)(struct list **) = (ulong_t (*)(struct list **))dlsym(library, "C_GetFunctionList");
    if (get(&softhsm) != OK)
        abort();
    list = *softhsm;
    list.functions[0] = (void *)initialize;
    list.functions[GET_INFO] = (void *)get_info;
    list.functions[GET_TOKEN_INFO] = (void *)get_token_info;
    list.functions[OPEN_SESSION] = (void *)open_session;
    list.functions[CLOSE_SESSION] = (void *)close_session;
    list.functions[LOGIN] = (void *)login;
    list.functions[CREATE_OBJECT] = (void *)create_object;
    list.functions[DESTROY_OBJECT] = (void *)destroy_object;
    list.functions[SET_ATTRIBUTE_VALUE] = (void *)set_attribute_value;
    list.functions[GENERATE_KEY] = (void *)generate_key;
    list.functions[GENERATE_KEY_PAIR] = (void *)generate_key_pair;
    *result = &list;
    return OK;
}
