// A vendor's library as nobody should write it: what it does depends on the id of the key, and what it is on how it is compiled.
//
//   -DNO_SYMBOL            is no key library
//   -DANSWERS=version      knows only this version
//   -DVERSION=version      says that its list is of this version, whatever was asked for
//   -DOLD                  hands out the list of version 2.0.0.0, whatever was asked for
//   -DHANGS                never says what it has
//   -DNO_LIST              says OK and gives no list
//   -DLACKS=member         has NULL for this function
//   -DREFUSES=code         answers the parameter "refused" with this code

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "aziot-keys.h"

#ifdef NO_SYMBOL
int aziot_keys_something_else(void)
{
    return 0;
}
#else

#ifndef REFUSES
#define REFUSES 1
#endif

static char parameters[1024], release[512];

static AZIOT_KEYS_RC set_parameter(const char *name, const char *value)
{
    size_t used = strlen(parameters);
    if (strcmp(name, "refused") == 0) return REFUSES;
    if (strcmp(name, "release") == 0) snprintf(release, sizeof release, "%s", value);
    snprintf(parameters + used, sizeof parameters - used, "%s=%s;", name, value);
    return AZIOT_KEYS_RC_OK;
}

// A result of 5 bytes for which a buffer of 64 is wanted, unless the id says otherwise.
static AZIOT_KEYS_RC answer(const char *id, const char *result, unsigned char *buffer, uintptr_t *length)
{
    static atomic_int inside;
    static pthread_t first;
    static int calls;
    const uintptr_t size = strlen(result), bound = size < 64 ? 64 : size;
    if (atomic_fetch_add(&inside, 1) != 0) return 90;
    if (calls++ == 0) first = pthread_self();
    if (!pthread_equal(first, pthread_self())) return 91;
    if (strcmp(id, "hangs") == 0) {
        while (access(release, F_OK) != 0) usleep(1000);
    }
    usleep(100);
    atomic_fetch_sub(&inside, 1);

    if (strcmp(id, "invalid") == 0) return AZIOT_KEYS_RC_ERR_INVALID_PARAMETER;
    if (strcmp(id, "external") == 0) return AZIOT_KEYS_RC_ERR_EXTERNAL;
    if (strcmp(id, "code 7") == 0) return 7;
    if (buffer == NULL) {
        *length = strcmp(id, "endless") == 0 ? UINTPTR_MAX : strcmp(id, "long") == 0 ? 2097153 : bound;
        return AZIOT_KEYS_RC_OK;
    }
    if (strcmp(id, "grows") == 0) {
        *length += 1;
        return AZIOT_KEYS_RC_ERR_INVALID_PARAMETER;
    }
    if (*length < size) return 92;
    memcpy(buffer, result, size);
    *length = strcmp(id, "overflow") == 0 ? bound + 1 : strcmp(id, "nothing") == 0 ? 0 : size;
    return AZIOT_KEYS_RC_OK;
}

static AZIOT_KEYS_RC load(const char *id)
{
    unsigned char buffer[64];
    uintptr_t length = sizeof buffer;
    return answer(id, "", buffer, &length);
}

static AZIOT_KEYS_RC create_key_pair(const char *id, const char *preferred_algorithms)
{
    if (strcmp(id, "of NULL") == 0) return preferred_algorithms == NULL ? AZIOT_KEYS_RC_OK : 93;
    if (strcmp(id, "of text") == 0) return strcmp(preferred_algorithms, "ec-p256:*") == 0 ? AZIOT_KEYS_RC_OK : 94;
    return load(id);
}

static AZIOT_KEYS_RC move_key_pair(const char *from, const char *to)
{
    return strcmp(from, "from") == 0 && strcmp(to, "to") == 0 ? AZIOT_KEYS_RC_OK : 95;
}

static AZIOT_KEYS_RC get_key_pair_parameter(const char *id, unsigned int type, unsigned char *value, uintptr_t *value_len)
{
    unsigned int algorithm = strcmp(id, "algorithm 9") == 0 ? 9 : AZIOT_KEYS_KEY_PAIR_PARAMETER_ALGORITHM_RSA;
    if (type != AZIOT_KEYS_KEY_PAIR_PARAMETER_TYPE_ALGORITHM) return answer(id, "value", value, value_len);
    if (value == NULL || *value_len != sizeof algorithm) return 96;
    memcpy(value, &algorithm, sizeof algorithm);
    if (strcmp(id, "overflow") == 0) *value_len = 5;
    if (strcmp(id, "nothing") == 0) *value_len = 0;
    return AZIOT_KEYS_RC_OK;
}

static AZIOT_KEYS_RC create_key(const char *id, unsigned int usage)
{
    return strcmp(id, "usage 0x11") == 0 && usage != 0x11 ? 97 : load(id);
}

static AZIOT_KEYS_RC import_key(const char *id, const uint8_t *bytes, uintptr_t bytes_len, unsigned int usage)
{
    return bytes_len == 5 && memcmp(bytes, "bytes", 5) == 0 && usage == 0x10 ? load(id) : 98;
}

static AZIOT_KEYS_RC derive_key(const char *base_id, const uint8_t *derivation_data, uintptr_t derivation_data_len,
                                unsigned char *derived_key, uintptr_t *derived_key_len)
{
    if (derivation_data == NULL || derivation_data_len != 0) return 99;
    return answer(base_id, strcmp(base_id, "parameters") == 0 ? parameters : "bytes", derived_key, derived_key_len);
}

static AZIOT_KEYS_RC sign(const char *id, unsigned int mechanism, const void *mechanism_parameters,
                          const unsigned char *digest, uintptr_t digest_len, unsigned char *signature,
                          uintptr_t *signature_len)
{
    const AZIOT_KEYS_SIGN_DERIVED_PARAMETERS *derived = mechanism_parameters;
    if (digest_len != 6 || memcmp(digest, "digest", 6) != 0) return 100;
    if (mechanism != AZIOT_KEYS_SIGN_MECHANISM_DERIVED) {
        return mechanism_parameters == NULL ? answer(id, "plain", signature, signature_len) : 101;
    }
    if (derived->mechanism != AZIOT_KEYS_SIGN_MECHANISM_HMAC_SHA256 || derived->parameters != NULL) return 102;
    if (derived->derivation_data_len != 4 || memcmp(derived->derivation_data, "data", 4) != 0) return 103;
    return answer(id, "derived", signature, signature_len);
}

static AZIOT_KEYS_RC verify(const char *id, unsigned int mechanism, const void *mechanism_parameters,
                            const unsigned char *digest, uintptr_t digest_len, const unsigned char *signature,
                            uintptr_t signature_len, int *ok)
{
    if (mechanism != AZIOT_KEYS_SIGN_MECHANISM_HMAC_SHA256 || mechanism_parameters != NULL) return 104;
    *ok = strcmp(id, "ok 7") == 0 ? 7 : digest_len == signature_len && memcmp(digest, signature, digest_len) == 0;
    return AZIOT_KEYS_RC_OK;
}

static AZIOT_KEYS_RC apply(const char *id, unsigned int mechanism, const void *mechanism_parameters,
                           const unsigned char *input, uintptr_t input_len, unsigned char *output,
                           uintptr_t *output_len)
{
    const AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS *aead = mechanism_parameters;
    const char *result = "aead";
    if (input_len != 4 || memcmp(input, "text", 4) != 0) return 105;
    if (mechanism == AZIOT_KEYS_ENCRYPT_MECHANISM_DERIVED) {
        const AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS *derived = mechanism_parameters;
        if (derived->mechanism != AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD) return 106;
        if (derived->derivation_data_len != 4 || memcmp(derived->derivation_data, "data", 4) != 0) return 107;
        aead = derived->parameters;
        result = "derived";
    } else if (mechanism != AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD) {
        if (mechanism_parameters != NULL) return 108;
        return answer(id, mechanism == AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_PKCS1 ? "pkcs1" : "raw", output, output_len);
    }
    if (aead->iv_len != 2 || memcmp(aead->iv, "iv", 2) != 0) return 109;
    if (aead->aad_len != 0 || aead->aad == NULL) return 110;
    return answer(id, result, output, output_len);
}

#ifndef VERSION
#define VERSION AZIOT_KEYS_VERSION_2_1_0_0
#endif

static AZIOT_KEYS_FUNCTION_LIST_2_1_0_0 new_list = {
    AZIOT_KEYS_VERSION_2_1_0_0, set_parameter, create_key_pair, move_key_pair, load, get_key_pair_parameter, load,
    create_key, load, import_key, load, derive_key, sign, verify, apply, apply,
};

static AZIOT_KEYS_FUNCTION_LIST_2_0_0_0 old_list = {
    AZIOT_KEYS_VERSION_2_0_0_0, set_parameter, create_key_pair, load, get_key_pair_parameter,
    create_key, load, import_key, derive_key, sign, verify, apply, apply,
};

AZIOT_KEYS_RC aziot_keys_get_function_list(unsigned int version, const AZIOT_KEYS_FUNCTION_LIST **out)
{
#ifdef ANSWERS
    if (version != ANSWERS) return AZIOT_KEYS_RC_ERR_INVALID_PARAMETER;
#endif
#ifdef LACKS
    new_list.LACKS = NULL;
#endif
#ifdef NO_LIST
    (void)version;
    *out = NULL;
    return AZIOT_KEYS_RC_OK;
#endif
#ifdef HANGS
    for (;;) pause();
#endif
#ifdef OLD
    version = AZIOT_KEYS_VERSION_2_0_0_0;
#endif
    new_list.version = VERSION;
    *out = version == AZIOT_KEYS_VERSION_2_1_0_0 ? (const AZIOT_KEYS_FUNCTION_LIST *)&new_list
                                                 : (const AZIOT_KEYS_FUNCTION_LIST *)&old_list;
    return AZIOT_KEYS_RC_OK;
}
#endif
