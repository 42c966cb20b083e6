// A PKCS#11 module that stands between the key service and SoftHSM2 as a reader stands before a card: everything goes through, unless
// the card is out. SoftHSM2 alone goes on with what it has read, whatever becomes of its files.
//
//   -DMODULE=path   the module of SoftHSM2
//   -DREMOVED=path  while this file exists, the card is out and its sessions are gone
//   -DPULLED=path   if this file exists, it gets the name REMOVED at the next C_Sign: the card goes in the middle of an operation
//   -DLOGINS=path   gets one byte for each PIN that is tried

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// The PKCS#11 types that matter here: all its numbers have the width of a long, and structures pass through unseen.
typedef unsigned long number;

struct list {
    unsigned char version[2];
    void *functions[68];
};

enum { GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, CLOSE_ALL_SESSIONS = 14, GET_SESSION_INFO = 15,
       LOGIN = 18, FIND_OBJECTS_INIT = 26, SIGN = 43 };

static const number OK = 0, DEVICE_REMOVED = 0x32, TOKEN_NOT_PRESENT = 0xe0;

static struct list *card, reader;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static number slot;
static int has_sessions;

static int is_out(void)
{
    if (access(REMOVED, F_OK) != 0) return 0;
    pthread_mutex_lock(&lock);
    if (has_sessions) ((number (*)(number))card->functions[CLOSE_ALL_SESSIONS])(slot);
    has_sessions = 0;
    pthread_mutex_unlock(&lock);
    return 1;
}

static number get_slot_list(unsigned char with_token, number *slots, number *count)
{
    if (is_out()) {
        *count = 0;
        return OK;
    }
    return ((number (*)(unsigned char, number *, number *))card->functions[GET_SLOT_LIST])(with_token, slots, count);
}

static number get_token_info(number id, void *info)
{
    if (is_out()) return TOKEN_NOT_PRESENT;
    return ((number (*)(number, void *))card->functions[GET_TOKEN_INFO])(id, info);
}

static number open_session(number id, number flags, void *application, void *notify, number *session)
{
    if (is_out()) return TOKEN_NOT_PRESENT;
    pthread_mutex_lock(&lock);
    slot = id;
    has_sessions = 1;
    pthread_mutex_unlock(&lock);
    return ((number (*)(number, number, void *, void *, number *))card->functions[OPEN_SESSION])(
        id, flags, application, notify, session);
}

static number get_session_info(number session, void *info)
{
    if (is_out()) return DEVICE_REMOVED;
    return ((number (*)(number, void *))card->functions[GET_SESSION_INFO])(session, info);
}

static number login(number session, number user, unsigned char *pin, number length)
{
    int logins = open(LOGINS, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (logins < 0 || write(logins, "x", 1) != 1) return DEVICE_REMOVED;
    close(logins);
    return ((number (*)(number, number, unsigned char *, number))card->functions[LOGIN])(session, user, pin, length);
}

static number find_objects_init(number session, void *template, number count)
{
    if (is_out()) return DEVICE_REMOVED;
    return ((number (*)(number, void *, number))card->functions[FIND_OBJECTS_INIT])(session, template, count);
}

static number sign(number session, unsigned char *data, number length, unsigned char *signature, number *signed_length)
{
    rename(PULLED, REMOVED);
    if (is_out()) return DEVICE_REMOVED;
    return ((number (*)(number, unsigned char *, number, unsigned char *, number *))card->functions[SIGN])(
        session, data, length, signature, signed_length);
}

number C_GetFunctionList(struct list **list)
{
    void *module = dlopen(MODULE, RTLD_NOW | RTLD_LOCAL);
    number (*get)(struct list **) = module == NULL ? NULL : dlsym(module, "C_GetFunctionList");
    if (get == NULL || get(&card) != OK) return DEVICE_REMOVED;
    reader = *card;
    reader.functions[GET_SLOT_LIST] = get_slot_list;
    reader.functions[GET_TOKEN_INFO] = get_token_info;
    reader.functions[OPEN_SESSION] = open_session;
    reader.functions[GET_SESSION_INFO] = get_session_info;
    reader.functions[LOGIN] = login;
    reader.functions[FIND_OBJECTS_INIT] = find_objects_init;
    reader.functions[SIGN] = sign;
    *list = &reader;
    return OK;
}
