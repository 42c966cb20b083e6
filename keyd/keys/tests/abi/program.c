// Uses every function of libaziot_keys.so, in both versions, with good arguments and with bad ones. The one argument is a folder with
// ec.pem and rsa.pem in it, which becomes the home. Values to compare with are the worked examples of the key service's specification.
// Ends with 1 after the first thing that is not as it should be.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "aziot-keys.h"

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);             \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

#define OK AZIOT_KEYS_RC_OK
#define INVALID AZIOT_KEYS_RC_ERR_INVALID_PARAMETER
#define EXTERNAL AZIOT_KEYS_RC_ERR_EXTERNAL
#define BYTES(text) (const unsigned char *)(text), (sizeof(text) - 1)

static const char EC_POINT[] =
    "02005ed4a44c5b74959d5dfbab89ccceaa31d93f7e7684d1b8255e03cac5c0c9ac";
static const char RSA_MODULUS[] =
    "c50b47da2045062fd45af9c777499cc61896e20c7811cd2a3f27e83b481d0eb58720a178fd5d82d394133ea0a24fd19c6341dc750f78c4"
    "7aaae6e4b2e1fe7058edd4e2c0007ffa123790e542b5dd1bd4bd4703ff3927300479a8cd5ae2f95d057f685ca31696a0ca1cd7145d962c"
    "eaac2ea7e775bdde8e8022e6c6e9c4ce7e9d";
static const char DIGEST_INFO[] =
    "3031300d060960864801650304020105000420ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
static const char RSA_SIGNATURE[] =
    "28b010cf0fca2025c92f3fdb44c47826cfdeabfe24b15b1380a0d0b06ef437b785954117baacecc488cff1780a0195e729c14e21f5d861"
    "32e23fa4e67cfda00594e056b71346756bcc0ce3536ad0cc36bfd967c79847fe1762ce719d36a6a977926aeb1793cd12a2860fac0dab7b"
    "a3ffbdd68b8513fba410949ffcc673f43c96";
static const char RSA_RAW[] =
    "5e04f075863ed0bbd085ed552b0904da1b1d66e3bc0fb916d12e882ab9f1f67d1c78b8399f50ee93e8b810b66a92d2891a60f09fffcf76"
    "6705ec390a4fedf7d5998077cde7593de7a9c1d9a979cd2a4c9f670a721dcdb6a3ae1e94c23dc0adb51008348a154d1b1af0babf204d8e"
    "5dbc9bd29b93da2e4606ebb33fb3fa3c186e";

static const AZIOT_KEYS_FUNCTION_LIST_2_1_0_0 *keys;
static const AZIOT_KEYS_FUNCTION_LIST_2_0_0_0 *old_keys;

static int is_hex(const unsigned char *bytes, uintptr_t length, const char *hex)
{
    char pair[3];
    if (strlen(hex) != 2 * length) return 0;
    for (uintptr_t index = 0; index < length; index++) {
        snprintf(pair, sizeof pair, "%02x", bytes[index]);
        if (memcmp(pair, hex + 2 * index, 2) != 0) return 0;
    }
    return 1;
}

static uintptr_t from_hex(const char *hex, unsigned char *bytes)
{
    uintptr_t length = strlen(hex) / 2;
    for (uintptr_t index = 0; index < length; index++) {
        unsigned int byte;
        CHECK(sscanf(hex + 2 * index, "%2x", &byte) == 1);
        bytes[index] = (unsigned char)byte;
    }
    return length;
}

static void function_lists(void)
{
    const AZIOT_KEYS_FUNCTION_LIST *list = NULL, *again = NULL;
    CHECK(aziot_keys_get_function_list(AZIOT_KEYS_VERSION_2_1_0_0, NULL) == INVALID);
    const unsigned int unknown[] = {0, 1, 0x01000000, 0x02000001, 0x02020000, 0x03000000, 0xffffffff};
    for (size_t index = 0; index < sizeof unknown / sizeof *unknown; index++) {
        CHECK(aziot_keys_get_function_list(unknown[index], &list) == INVALID && list == NULL);
    }
    CHECK(aziot_keys_get_function_list(AZIOT_KEYS_VERSION_2_0_0_0, &list) == OK);
    CHECK(list->version == AZIOT_KEYS_VERSION_2_0_0_0);
    old_keys = (const AZIOT_KEYS_FUNCTION_LIST_2_0_0_0 *)list;
    CHECK(aziot_keys_get_function_list(AZIOT_KEYS_VERSION_2_1_0_0, &list) == OK);
    CHECK(aziot_keys_get_function_list(AZIOT_KEYS_VERSION_2_1_0_0, &again) == OK && again == list);
    CHECK(list->version == AZIOT_KEYS_VERSION_2_1_0_0);
    keys = (const AZIOT_KEYS_FUNCTION_LIST_2_1_0_0 *)list;
    // Both lists are full: no member between the first and the last is NULL.
    const void *const *members = (const void *const *)keys;
    for (size_t index = 1; index < sizeof *keys / sizeof *members; index++) CHECK(members[index] != NULL);
    members = (const void *const *)old_keys;
    for (size_t index = 1; index < sizeof *old_keys / sizeof *members; index++) CHECK(members[index] != NULL);
}

static void parameters(const char *folder)
{
    char value[4096];
    CHECK(keys->create_key_if_not_exists("k", AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID); // No place for keys yet.
    CHECK(keys->set_parameter(NULL, "x") == INVALID);
    CHECK(keys->set_parameter("homedir_path", NULL) == INVALID);
    CHECK(keys->set_parameter("homedir_path", "\xff") == INVALID);
    CHECK(keys->set_parameter("\xff", "x") == INVALID);
    CHECK(keys->set_parameter("homedir", "x") == INVALID);
    CHECK(keys->set_parameter("", "x") == INVALID);
    CHECK(keys->set_parameter("preloaded_key:", "file:///x") == INVALID);
    CHECK(keys->set_parameter("preloaded_key:k", "http://x") == INVALID);
    CHECK(keys->set_parameter("preloaded_key:k", "file://elsewhere/x") == INVALID);
    CHECK(keys->set_parameter("pkcs11_base_slot", "pkcs11:object=o?pin-value=1234") == INVALID);
    CHECK(old_keys->set_parameter("homedir_path", folder) == OK);
    snprintf(value, sizeof value, "file://%s/ec.pem", folder);
    CHECK(keys->set_parameter("preloaded_key:ec", value) == OK);
    snprintf(value, sizeof value, "file://%s/rsa.pem", folder);
    CHECK(keys->set_parameter("preloaded_key:rsa", value) == OK);
    CHECK(keys->load_key_pair("ec") == OK);
    // A later parameter counts from then on.
    CHECK(keys->load_key_pair("late") == INVALID);
    CHECK(keys->set_parameter("preloaded_key:late", value) == OK);
    CHECK(keys->load_key_pair("late") == OK);
}

static void symmetric_keys(void)
{
    unsigned char k1[32], buffer[64];
    uintptr_t length;
    for (int index = 0; index < 32; index++) k1[index] = (unsigned char)(0x40 + index);
    CHECK(keys->load_key("k1") == INVALID && keys->delete_key("k1") == OK);
    CHECK(keys->import_key("k1", k1, sizeof k1, AZIOT_KEYS_KEY_USAGE_SIGN) == OK);
    CHECK(old_keys->import_key("key", BYTES("key"), AZIOT_KEYS_KEY_USAGE_SIGN) == OK);
    CHECK(keys->load_key("k1") == OK && old_keys->load_key("key") == OK);
    CHECK(keys->import_key("empty", BYTES(""), AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->import_key("k", NULL, 0, AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->import_key("k", k1, (uintptr_t)-1, AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->import_key(NULL, k1, sizeof k1, AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->create_key_if_not_exists("made", AZIOT_KEYS_KEY_USAGE_DERIVE | AZIOT_KEYS_KEY_USAGE_ENCRYPT) == OK);
    CHECK(keys->create_key_if_not_exists("made", AZIOT_KEYS_KEY_USAGE_SIGN) == OK);
    CHECK(keys->create_key_if_not_exists(NULL, AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->create_key_if_not_exists("\xc3", AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->delete_key("made") == OK && keys->load_key("made") == INVALID && keys->delete_key("made") == OK);
    CHECK(keys->load_key(NULL) == INVALID && keys->load_key("\xff") == INVALID && keys->delete_key(NULL) == INVALID);

    length = 12345;
    CHECK(keys->derive_key("k1", BYTES("modA:1:primary"), NULL, &length) == OK && length == 32);
    length = sizeof buffer;
    CHECK(keys->derive_key("k1", BYTES("modA:1:primary"), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, "82a2faf9a7cd82794e071c6b1a0465bde3ae46adbf05ac6d3924b364529d755c"));
    length = 31;
    CHECK(keys->derive_key("k1", BYTES("modA:1:primary"), buffer, &length) == INVALID && length == 32);
    CHECK(keys->derive_key("absent", BYTES("data"), NULL, &length) == INVALID);
    CHECK(keys->derive_key(NULL, BYTES("data"), buffer, &length) == INVALID);
    CHECK(keys->derive_key("k1", NULL, 0, buffer, &length) == INVALID);
    CHECK(keys->derive_key("k1", BYTES("data"), buffer, NULL) == INVALID);
    CHECK(keys->derive_key("k1", BYTES(""), buffer, &length) == OK && length == 32);
}

static void hmac(void)
{
    const AZIOT_KEYS_SIGN_DERIVED_PARAMETERS derived = {BYTES("data"), AZIOT_KEYS_SIGN_MECHANISM_HMAC_SHA256, NULL};
    AZIOT_KEYS_SIGN_DERIVED_PARAMETERS wrong = derived;
    unsigned char buffer[64], good[32];
    uintptr_t length = 0;
    int ok = 7;
    const unsigned int plain = AZIOT_KEYS_SIGN_MECHANISM_HMAC_SHA256, from = AZIOT_KEYS_SIGN_MECHANISM_DERIVED;

    CHECK(keys->sign("k1", plain, NULL, BYTES("hello"), NULL, &length) == OK && length == 32);
    CHECK(keys->sign("k1", plain, NULL, BYTES("hello"), good, &length) == OK && length == 32);
    CHECK(is_hex(good, length, "01043290094dcd211076cd9e66c478f57891856c3dbf5950f51141911b6ca433"));
    length = sizeof buffer;
    CHECK(old_keys->sign("k1", plain, NULL, BYTES(""), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, "6656ed44406d8895497b1b8d854118fcd7790e181ce6ea7ca4eed793f0fcd594"));
    length = sizeof buffer;
    CHECK(keys->sign("key", plain, NULL, BYTES("m"), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, "782906cfdc87462bf9242b96f17057c3389530ff937920823bf7a583f5d983a5"));
    length = sizeof buffer;
    CHECK(keys->sign("key", from, &derived, BYTES("m"), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, "f104cdbd9f7b3d66bfab0bee2f48c517e4a497570a141f62194dc9a6b754df76"));

    memset(buffer, 0xaa, sizeof buffer);
    length = 31;
    CHECK(keys->sign("k1", plain, NULL, BYTES("hello"), buffer, &length) == INVALID && length == 32 && buffer[0] == 0xaa);
    CHECK(keys->sign(NULL, plain, NULL, BYTES("hello"), buffer, &length) == INVALID);
    CHECK(keys->sign("absent", plain, NULL, BYTES("hello"), NULL, &length) == INVALID);
    CHECK(keys->sign("absent", plain, NULL, BYTES("hello"), buffer, &length) == INVALID);
    CHECK(keys->sign("k1", plain, NULL, NULL, 0, buffer, &length) == INVALID);
    CHECK(keys->sign("k1", plain, NULL, BYTES("hello"), buffer, NULL) == INVALID);
    CHECK(keys->sign("k1", 0, NULL, BYTES("hello"), buffer, &length) == INVALID);
    CHECK(keys->sign("k1", 4, NULL, BYTES("hello"), buffer, &length) == INVALID);
    CHECK(keys->sign("k1", from, NULL, BYTES("hello"), buffer, &length) == INVALID);
    CHECK(keys->sign("k1", from, (const char *)&derived + 1, BYTES("hello"), buffer, &length) == INVALID);
    wrong.mechanism = AZIOT_KEYS_SIGN_MECHANISM_ECDSA;
    CHECK(keys->sign("k1", from, &wrong, BYTES("hello"), buffer, &length) == INVALID);
    wrong.mechanism = from;
    wrong.parameters = &derived;
    CHECK(keys->sign("k1", from, &wrong, BYTES("hello"), buffer, &length) == INVALID);
    wrong = derived;
    wrong.derivation_data = NULL;
    CHECK(keys->sign("k1", from, &wrong, BYTES("hello"), buffer, &length) == INVALID);
    CHECK(keys->sign("ec", plain, NULL, BYTES("hello"), buffer, &length) == INVALID); // A key pair is no HMAC key.

    CHECK(keys->verify("k1", plain, NULL, BYTES("hello"), good, 32, &ok) == OK && ok == 1);
    CHECK(old_keys->verify("k1", plain, NULL, BYTES("hullo"), good, 32, &ok) == OK && ok == 0);
    CHECK(keys->verify("k1", plain, NULL, BYTES("hello"), good, 31, &ok) == OK && ok == 0);
    CHECK(keys->verify("k1", plain, NULL, BYTES("hello"), good, 0, &ok) == OK && ok == 0);
    ok = 1;
    CHECK(keys->verify("absent", plain, NULL, BYTES("hello"), good, 32, &ok) == INVALID && ok == 0);
    CHECK(keys->verify(NULL, plain, NULL, BYTES("hello"), good, 32, &ok) == INVALID);
    CHECK(keys->verify("k1", plain, NULL, NULL, 0, good, 32, &ok) == INVALID);
    CHECK(keys->verify("k1", plain, NULL, BYTES("hello"), NULL, 32, &ok) == INVALID);
    CHECK(keys->verify("k1", plain, NULL, BYTES("hello"), good, 32, NULL) == INVALID);
    CHECK(keys->verify("key", from, &derived, BYTES("m"), good, 32, &ok) == INVALID);
    CHECK(keys->verify("ec", AZIOT_KEYS_SIGN_MECHANISM_ECDSA, NULL, BYTES("m"), good, 32, &ok) == INVALID);
}

static void aead(void)
{
    static const char LAYOUT_2[] = "02496a011d57fc28c1ab7cf4a7c099a39373afb7d904b0f728907694833490";
    static const char LAYOUT_1[] = "01a39373afb7d904b0f728907694833490496a011d57fc28c1ab7cf4a7c099";
    static const char DERIVED[] = "028d250aaa0af1de92dd19e6cfbfb503ec6d4d187d9666075cc5102d3e22ff";
    static const char LONG_IV[] = "0211d0c0be7b57b681df1de8a28767de359008ee0fd4ab4aea73e136932716";
    static const char EMPTY[] = "02b7ea4334aedf484bfc0d12346b5a8d7e";
    const unsigned char iv[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    const AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS good = {iv, sizeof iv, BYTES("$iotedged")};
    const AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS derived = {BYTES("modA:1:primary"), AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD, &good};
    AZIOT_KEYS_ENCRYPT_AEAD_PARAMETERS other = good;
    AZIOT_KEYS_ENCRYPT_DERIVED_PARAMETERS wrong = derived;
    const unsigned int plain = AZIOT_KEYS_ENCRYPT_MECHANISM_AEAD, from = AZIOT_KEYS_ENCRYPT_MECHANISM_DERIVED;
    unsigned char buffer[64], ciphertext[64];
    uintptr_t length = 0, ciphertext_length;

    CHECK(keys->encrypt("k1", plain, &good, BYTES("some plaintext"), NULL, &length) == OK && length == 31);
    CHECK(keys->encrypt("k1", plain, &good, BYTES("some plaintext"), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, LAYOUT_2));
    length = sizeof buffer;
    CHECK(old_keys->encrypt("k1", from, &derived, BYTES("some plaintext"), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, DERIVED));
    other.iv = (const unsigned char *)"123e4567e89b12d3a456426614174000";
    other.iv_len = 32;
    length = sizeof buffer;
    CHECK(keys->encrypt("k1", plain, &other, BYTES("some plaintext"), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, LONG_IV));
    length = sizeof buffer;
    CHECK(keys->encrypt("k1", plain, &good, BYTES(""), buffer, &length) == OK);
    CHECK(is_hex(buffer, length, EMPTY));

    ciphertext_length = from_hex(LAYOUT_2, ciphertext);
    length = 0;
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, NULL, &length) == OK);
    CHECK(length >= 14 && length <= sizeof buffer);
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == OK);
    CHECK(length == 14 && memcmp(buffer, "some plaintext", 14) == 0);
    length = 13;
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == INVALID && length >= 14);
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == OK && length == 14);
    // In place.
    length = sizeof ciphertext;
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, ciphertext, &length) == OK);
    CHECK(length == 14 && memcmp(ciphertext, "some plaintext", 14) == 0);
    ciphertext_length = from_hex(LAYOUT_1, ciphertext);
    length = sizeof buffer;
    CHECK(old_keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == OK && length == 14);
    ciphertext_length = from_hex(DERIVED, ciphertext);
    length = sizeof buffer;
    CHECK(keys->decrypt("k1", from, &derived, ciphertext, ciphertext_length, buffer, &length) == OK && length == 14);
    // Nothing but the real length tells a caller of an empty plaintext from a forged one.
    ciphertext_length = from_hex(EMPTY, ciphertext);
    length = 0;
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, NULL, &length) == OK && length > 0);
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == OK && length == 0);

    ciphertext[16] ^= 1;
    length = sizeof buffer;
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == EXTERNAL);
    ciphertext[0] = 3;
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, ciphertext_length, buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", plain, &good, BYTES(""), buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, 16, buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_PKCS1, NULL, ciphertext, 16, buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", 9, NULL, ciphertext, 16, buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", plain, NULL, ciphertext, 17, buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", plain, &good, NULL, 17, buffer, &length) == INVALID);
    CHECK(keys->decrypt("k1", plain, &good, ciphertext, 17, buffer, NULL) == INVALID);
    CHECK(keys->decrypt(NULL, plain, &good, ciphertext, 17, buffer, &length) == INVALID);
    CHECK(keys->encrypt("key", plain, &good, BYTES("text"), buffer, &length) == EXTERNAL); // 3 bytes are no AES key.
    CHECK(keys->encrypt("k1", 0, &good, BYTES("text"), buffer, &length) == INVALID);
    CHECK(keys->encrypt("k1", 5, &good, BYTES("text"), buffer, &length) == INVALID);
    CHECK(keys->encrypt("k1", plain, NULL, BYTES("text"), buffer, &length) == INVALID);
    CHECK(keys->encrypt("k1", from, NULL, BYTES("text"), buffer, &length) == INVALID);
    CHECK(keys->encrypt("absent", plain, &good, BYTES("text"), NULL, &length) == INVALID);
    CHECK(keys->encrypt("k1", plain, &good, NULL, 0, buffer, &length) == INVALID);
    CHECK(keys->encrypt("k1", plain, &good, BYTES("text"), buffer, NULL) == INVALID);
    other.iv_len = 0;
    CHECK(keys->encrypt("k1", plain, &other, BYTES("text"), buffer, &length) == EXTERNAL);
    other.iv = NULL;
    CHECK(keys->encrypt("k1", plain, &other, BYTES("text"), buffer, &length) == INVALID);
    other = good;
    other.aad = NULL;
    CHECK(keys->encrypt("k1", plain, &other, BYTES("text"), buffer, &length) == INVALID);
    wrong.parameters = NULL;
    CHECK(keys->encrypt("k1", from, &wrong, BYTES("text"), buffer, &length) == INVALID);
    wrong.parameters = &good;
    wrong.mechanism = AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_PKCS1;
    CHECK(keys->encrypt("k1", from, &wrong, BYTES("text"), buffer, &length) == INVALID);
    wrong.mechanism = from;
    CHECK(keys->encrypt("k1", from, &wrong, BYTES("text"), buffer, &length) == INVALID);
}

static void key_pairs(void)
{
    const char *digest_hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    unsigned char digest[32], buffer[512], counting[128], info[64];
    uintptr_t length = 0, info_length;
    unsigned int algorithm = 0;
    const unsigned int ecdsa = AZIOT_KEYS_SIGN_MECHANISM_ECDSA, pkcs1 = AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_PKCS1;
    const unsigned int raw = AZIOT_KEYS_ENCRYPT_MECHANISM_RSA_NO_PADDING;
    from_hex(digest_hex, digest);

    length = sizeof algorithm;
    CHECK(keys->get_key_pair_parameter("ec", 1, (unsigned char *)&algorithm, &length) == OK && length == 4 && algorithm == 1);
    CHECK(old_keys->get_key_pair_parameter("rsa", 1, (unsigned char *)&algorithm, &length) == OK && algorithm == 2);
    length = 3;
    CHECK(keys->get_key_pair_parameter("ec", 1, (unsigned char *)&algorithm, &length) == INVALID && length == 4);
    CHECK(keys->get_key_pair_parameter("ec", 2, NULL, &length) == OK && length == 10);
    CHECK(keys->get_key_pair_parameter("ec", 2, buffer, &length) == OK && is_hex(buffer, length, "06082a8648ce3d030107"));
    length = sizeof buffer;
    CHECK(keys->get_key_pair_parameter("ec", 3, buffer, &length) == OK && is_hex(buffer, length, EC_POINT));
    length = sizeof buffer;
    CHECK(keys->get_key_pair_parameter("rsa", 4, buffer, &length) == OK && is_hex(buffer, length, RSA_MODULUS));
    length = sizeof buffer;
    CHECK(keys->get_key_pair_parameter("rsa", 5, buffer, &length) == OK && is_hex(buffer, length, "010001"));
    length = sizeof buffer;
    CHECK(keys->get_key_pair_parameter("rsa", 3, buffer, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter("ec", 4, NULL, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter("ec", 0, buffer, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter("ec", 6, buffer, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter("k1", 1, buffer, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter("absent", 1, buffer, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter(NULL, 1, buffer, &length) == INVALID);
    CHECK(keys->get_key_pair_parameter("ec", 1, buffer, NULL) == INVALID);

    CHECK(keys->sign("ec", ecdsa, NULL, digest, 32, NULL, &length) == OK && length == 72);
    CHECK(keys->sign("ec", ecdsa, NULL, digest, 32, buffer, &length) == OK && length <= 72 && buffer[0] == 0x30);
    printf("signature ");
    for (uintptr_t index = 0; index < length; index++) printf("%02x", buffer[index]);
    printf("\n");
    length = 60;
    CHECK(keys->sign("ec", ecdsa, NULL, digest, 32, buffer, &length) == INVALID && length == 72);
    CHECK(keys->sign("ec", ecdsa, NULL, BYTES(""), buffer, &length) == OK);
    length = sizeof buffer;
    CHECK(keys->sign("rsa", ecdsa, NULL, digest, 32, buffer, &length) == INVALID);
    CHECK(keys->sign("rsa", ecdsa, NULL, digest, 32, NULL, &length) == INVALID);

    info_length = from_hex(DIGEST_INFO, info);
    CHECK(keys->encrypt("rsa", pkcs1, NULL, info, info_length, NULL, &length) == OK && length == 128);
    CHECK(keys->encrypt("rsa", pkcs1, NULL, info, info_length, buffer, &length) == OK);
    CHECK(is_hex(buffer, length, RSA_SIGNATURE));
    for (int index = 0; index < 128; index++) counting[index] = (unsigned char)index;
    CHECK(old_keys->encrypt("rsa", raw, NULL, counting, 128, buffer, &length) == OK && is_hex(buffer, length, RSA_RAW));
    length = 127;
    CHECK(keys->encrypt("rsa", raw, NULL, counting, 128, buffer, &length) == INVALID && length == 128);
    CHECK(keys->encrypt("rsa", raw, NULL, counting, 127, buffer, &length) == EXTERNAL);
    CHECK(keys->encrypt("rsa", pkcs1, NULL, counting, 118, buffer, &length) == EXTERNAL);
    CHECK(keys->encrypt("ec", pkcs1, NULL, info, info_length, buffer, &length) == INVALID);
    CHECK(keys->encrypt("ec", pkcs1, NULL, info, info_length, NULL, &length) == INVALID);

    CHECK(keys->create_key_pair_if_not_exists("made", NULL) == OK);
    CHECK(old_keys->create_key_pair_if_not_exists("made", "rsa-2048") == OK);
    length = sizeof algorithm;
    CHECK(keys->get_key_pair_parameter("made", 1, (unsigned char *)&algorithm, &length) == OK && algorithm == 1);
    CHECK(keys->create_key_pair_if_not_exists("other", "") == INVALID);
    CHECK(keys->create_key_pair_if_not_exists("other", "\xff") == INVALID);
    CHECK(keys->create_key_pair_if_not_exists(NULL, "*") == INVALID);
    CHECK(keys->load_key_pair(NULL) == INVALID && keys->load_key_pair("absent") == INVALID);
    CHECK(keys->move_key_pair("made", "moved") == OK);
    CHECK(keys->load_key_pair("made") == INVALID && old_keys->load_key_pair("moved") == OK);
    CHECK(keys->move_key_pair(NULL, "x") == INVALID && keys->move_key_pair("moved", NULL) == INVALID);
    CHECK(keys->move_key_pair("absent", "moved") == EXTERNAL && keys->load_key_pair("moved") == OK);
    CHECK(keys->delete_key_pair("moved") == OK && keys->delete_key_pair("moved") == OK);
    CHECK(keys->load_key_pair("moved") == INVALID && keys->delete_key_pair(NULL) == INVALID);
    // Operators' keys stay.
    CHECK(keys->delete_key_pair("ec") == INVALID && keys->move_key_pair("ec", "mine") == INVALID);
    CHECK(keys->import_key("rsa", BYTES("bytes"), AZIOT_KEYS_KEY_USAGE_SIGN) == INVALID);
    CHECK(keys->load_key_pair("ec") == OK && keys->load_key_pair("rsa") == OK);
}

// The token of the base slot must be there as soon as both of its parameters are.
static void missing_token(void)
{
    CHECK(keys->set_parameter("pkcs11_base_slot", "pkcs11:slot-id=0?pin-value=1234") == OK);
    CHECK(keys->load_key("k1") == OK);
    CHECK(keys->set_parameter("pkcs11_lib_path", "/nonexistent/module.so") == EXTERNAL);
    CHECK(keys->load_key("k1") == OK); // A refused parameter changes nothing.
}

int main(int count, char **arguments)
{
    CHECK(count == 2);
    function_lists();
    parameters(arguments[1]);
    symmetric_keys();
    hmac();
    aead();
    key_pairs();
    missing_token();
    return 0;
}
