/* A PKCS#11 module that behaves like SoftHSM2 until it is told to misbehave.
 *
 * Every call is counted, then delayed, refused, hung or crashed as the control file says, and
 * only then handed to the real module. The control file is mapped, so a test changes it while
 * the module runs, and what a token would remember (wrong PINs) outlives the process.
 *
 * FAULTY_MODULE   path of the real module
 * FAULTY_CONTROL  path of the control file, of sizeof(struct control) bytes
 *
 * All parameters of Cryptoki are pointers or CK_ULONGs, and one CK_BBOOL: each travels as one
 * machine word on the 64-bit Linux ABIs, which is what the generic wrappers rely on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long W;

#define CKR_OK 0x00UL
#define CKR_GENERAL_ERROR 0x05UL
#define CKR_DEVICE_ERROR 0x30UL
#define CKR_MECHANISM_PARAM_INVALID 0x71UL
#define CKR_PIN_INCORRECT 0xa0UL
#define CKR_PIN_LOCKED 0xa4UL
#define CKR_SESSION_COUNT 0xb1UL
#define CKR_BUFFER_TOO_SMALL 0x150UL
#define CKM_AES_GCM 0x1087UL
#define CKF_USER_PIN_COUNT_LOW 0x10000UL
#define CKF_USER_PIN_FINAL_TRY 0x20000UL
#define CKF_USER_PIN_LOCKED 0x40000UL
#define CKU_USER 1UL

struct token_info { /* CK_TOKEN_INFO, PKCS#11 2.40 section 3.2 */
    unsigned char texts[96];
    W flags, max_sessions, sessions, max_rw_sessions, rw_sessions, rest[6];
    unsigned char versions[4], utc_time[16];
};

struct mechanism { /* CK_MECHANISM */
    W type;
    struct gcm *parameter;
    W size;
};

struct gcm { /* CK_GCM_PARAMS, PKCS#11 2.40 section 2.12 of the mechanisms */
    unsigned char *iv;
    W iv_bytes, iv_bits;
    unsigned char *aad;
    W aad_bytes, tag_bits;
};

/* In the order of CK_FUNCTION_LIST. T: the first argument is a slot id. H: written by hand. */
#define FUNCTIONS(G, T, H)                                                                       \
    G(Initialize, 1) H(Finalize, 1) G(GetInfo, 1) H(GetFunctionList, 1) H(GetSlotList, 3)        \
    T(GetSlotInfo, 2) H(GetTokenInfo, 2) T(GetMechanismList, 3) T(GetMechanismInfo, 3)           \
    T(InitToken, 4) G(InitPIN, 3) G(SetPIN, 5) H(OpenSession, 5) H(CloseSession, 1)              \
    H(CloseAllSessions, 1) G(GetSessionInfo, 2) G(GetOperationState, 3)                          \
    G(SetOperationState, 5) H(Login, 4) G(Logout, 1) G(CreateObject, 4) G(CopyObject, 5)         \
    G(DestroyObject, 2) G(GetObjectSize, 3) G(GetAttributeValue, 4) G(SetAttributeValue, 4)      \
    G(FindObjectsInit, 3) G(FindObjects, 4) G(FindObjectsFinal, 1) H(EncryptInit, 3)             \
    H(Encrypt, 5) G(EncryptUpdate, 5) G(EncryptFinal, 3) G(DecryptInit, 3) G(Decrypt, 5)         \
    G(DecryptUpdate, 5) G(DecryptFinal, 3) G(DigestInit, 2) G(Digest, 5) G(DigestUpdate, 3)      \
    G(DigestKey, 2) G(DigestFinal, 3) G(SignInit, 3) G(Sign, 5) G(SignUpdate, 3)                 \
    G(SignFinal, 3) G(SignRecoverInit, 3) G(SignRecover, 5) G(VerifyInit, 3) G(Verify, 5)        \
    G(VerifyUpdate, 3) G(VerifyFinal, 3) G(VerifyRecoverInit, 3) G(VerifyRecover, 5)             \
    G(DigestEncryptUpdate, 5) G(DecryptDigestUpdate, 5) G(SignEncryptUpdate, 5)                  \
    G(DecryptVerifyUpdate, 5) G(GenerateKey, 5) G(GenerateKeyPair, 8) G(WrapKey, 6)              \
    G(UnwrapKey, 8) G(DeriveKey, 6) G(SeedRandom, 3) G(GenerateRandom, 3)                        \
    G(GetFunctionStatus, 1) G(CancelFunction, 1) G(WaitForSlotEvent, 3)

#define NUMBER(name, arity) N_##name,
enum { FUNCTIONS(NUMBER, NUMBER, NUMBER) COUNT };

enum action { PASS, REFUSE, HANG, CRASH };
enum gcm_iv { OF_THE_CALLER, OF_THE_TOKEN, REPLACED_BY_THE_TOKEN };
enum event { NONE, LOSE_SESSIONS, UNINITIALISE };

struct entry {
    uint64_t calls;
    uint64_t latency_us;
    uint64_t action;
    uint64_t result; /* of REFUSE */
    uint64_t times;  /* how often the action is still taken */
};

struct control {
    uint64_t releases;      /* raised by one: every hanging call goes on */
    uint64_t event;         /* taken once, before the next call */
    uint64_t slot_offset;   /* added to every slot id */
    uint64_t pin_limit;     /* wrong PINs until the lock; 0: never */
    uint64_t pin_failures;  /* kept here as a token keeps it */
    uint64_t session_limit; /* 0: what the real module says */
    uint64_t sick;          /* an action, for each new session of the token named below */
    uint64_t gcm_iv;        /* who makes the IV of AES-GCM; the token's is appended to the output */
    char sick_label[32];    /* padded with spaces, as CK_TOKEN_INFO has it */
    struct entry functions[COUNT];
};

struct function_list {
    unsigned char major, minor;
    void *functions[COUNT];
};

static struct control *control;
static struct function_list *real;
static pthread_rwlock_t running = PTHREAD_RWLOCK_INITIALIZER;
static uint64_t open_sessions;

#define W_1 W a
#define W_2 W_1, W b
#define W_3 W_2, W c
#define W_4 W_3, W d
#define W_5 W_4, W e
#define W_6 W_5, W f
#define W_8 W_6, W g, W h
#define V_1 a
#define V_2 V_1, b
#define V_3 V_2, c
#define V_4 V_3, d
#define V_5 V_4, e
#define V_6 V_5, f
#define V_8 V_6, g, h
#define REAL(name, arity) ((W(*)(W_##arity))real->functions[N_##name])

static void pause_us(uint64_t us)
{
    struct timespec span = {us / 1000000, (us % 1000000) * 1000};
    while (nanosleep(&span, &span))
        ;
}

static void close_all_sessions(void)
{
    W slots[64], count = 64;
    if (REAL(GetSlotList, 3)(0, (W)slots, (W)&count) == CKR_OK)
        for (W i = 0; i < count; i++)
            REAL(CloseAllSessions, 1)(slots[i]);
    open_sessions = 0;
}

static void take_event(void)
{
    uint64_t event = __atomic_exchange_n(&control->event, NONE, __ATOMIC_SEQ_CST);
    if (event == NONE)
        return;
    pthread_rwlock_wrlock(&running);
    close_all_sessions();
    if (event == UNINITIALISE)
        REAL(Finalize, 1)(0);
    pthread_rwlock_unlock(&running);
}

/* CKR_OK: hand the call to the real module, and leave() afterwards. */
static W enter(int number)
{
    struct entry *entry = &control->functions[number];
    __atomic_add_fetch(&entry->calls, 1, __ATOMIC_SEQ_CST);
    if (entry->latency_us)
        pause_us(entry->latency_us);
    if (control->event != NONE && number != N_Initialize)
        take_event();
    uint64_t left = __atomic_load_n(&entry->times, __ATOMIC_SEQ_CST);
    while (left && !__atomic_compare_exchange_n(&entry->times, &left,
                                                left == UINT64_MAX ? left : left - 1, 0,
                                                __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    if (left) {
        uint64_t releases = control->releases;
        switch ((enum action)entry->action) {
        case REFUSE:
            return (W)entry->result;
        case HANG:
            while (__atomic_load_n(&control->releases, __ATOMIC_SEQ_CST) == releases)
                pause_us(1000);
            break;
        case CRASH:
            *(volatile int *)0 = 0;
            break;
        case PASS:
            break;
        }
    }
    pthread_rwlock_rdlock(&running);
    return CKR_OK;
}

static W leave(W result)
{
    pthread_rwlock_unlock(&running);
    return result;
}

#define GENERIC(name, arity)                                                                     \
    W C_##name(W_##arity)                                                                        \
    {                                                                                            \
        W refused = enter(N_##name);                                                             \
        return refused ? refused : leave(REAL(name, arity)(V_##arity));                          \
    }
#define ON_SLOT(name, arity)                                                                     \
    W C_##name(W_##arity)                                                                        \
    {                                                                                            \
        W refused = enter(N_##name);                                                             \
        a -= control->slot_offset;                                                               \
        return refused ? refused : leave(REAL(name, arity)(V_##arity));                          \
    }
#define BY_HAND(name, arity) W C_##name(W_##arity);
FUNCTIONS(GENERIC, ON_SLOT, BY_HAND)

W C_Finalize(W a)
{
    W refused = enter(N_Finalize);
    if (refused)
        return refused;
    W result = REAL(Finalize, 1)(a);
    if (result == CKR_OK)
        open_sessions = 0;
    return leave(result);
}

W C_GetSlotList(W present, W list, W count)
{
    W refused = enter(N_GetSlotList);
    if (refused)
        return refused;
    W result = REAL(GetSlotList, 3)(present, list, count);
    if (result == CKR_OK && list)
        for (W i = 0; i < *(W *)count; i++)
            ((W *)list)[i] += control->slot_offset;
    return leave(result);
}

W C_GetTokenInfo(W slot, W info)
{
    W refused = enter(N_GetTokenInfo);
    if (refused)
        return refused;
    W result = REAL(GetTokenInfo, 2)(slot - control->slot_offset, info);
    struct token_info *token = (struct token_info *)info;
    uint64_t limit = control->pin_limit, failures = control->pin_failures;
    if (result == CKR_OK && limit) {
        token->flags |= failures ? CKF_USER_PIN_COUNT_LOW : 0;
        token->flags |= failures + 1 == limit ? CKF_USER_PIN_FINAL_TRY : 0;
        token->flags |= failures >= limit ? CKF_USER_PIN_LOCKED : 0;
    }
    if (result == CKR_OK && control->session_limit)
        token->max_sessions = token->max_rw_sessions = control->session_limit;
    return leave(result);
}

/* CKR_OK, after a hang or at once, or what a new session of a sick token answers. */
static W ask_health(W slot)
{
    struct token_info token;
    if (control->sick == PASS || REAL(GetTokenInfo, 2)(slot, (W)&token) != CKR_OK ||
        memcmp(token.texts, control->sick_label, sizeof control->sick_label))
        return CKR_OK;
    if (control->sick == REFUSE)
        return CKR_DEVICE_ERROR;
    uint64_t releases = control->releases;
    while (__atomic_load_n(&control->releases, __ATOMIC_SEQ_CST) == releases)
        pause_us(1000);
    return CKR_OK;
}

W C_OpenSession(W slot, W flags, W application, W notify, W session)
{
    W refused = enter(N_OpenSession);
    if (refused)
        return refused;
    refused = ask_health(slot - control->slot_offset);
    if (refused)
        return leave(refused);
    uint64_t count = __atomic_add_fetch(&open_sessions, 1, __ATOMIC_SEQ_CST);
    W result = CKR_SESSION_COUNT;
    if (!control->session_limit || count <= control->session_limit)
        result = REAL(OpenSession, 5)(slot - control->slot_offset, flags, application, notify,
                                      session);
    if (result != CKR_OK)
        __atomic_sub_fetch(&open_sessions, 1, __ATOMIC_SEQ_CST);
    return leave(result);
}

W C_CloseSession(W session)
{
    W refused = enter(N_CloseSession);
    if (refused)
        return refused;
    W result = REAL(CloseSession, 1)(session);
    if (result == CKR_OK)
        __atomic_sub_fetch(&open_sessions, 1, __ATOMIC_SEQ_CST);
    return leave(result);
}

W C_CloseAllSessions(W slot)
{
    W refused = enter(N_CloseAllSessions);
    if (refused)
        return refused;
    open_sessions = 0;
    return leave(REAL(CloseAllSessions, 1)(slot - control->slot_offset));
}

W C_Login(W session, W user, W pin, W length)
{
    W refused = enter(N_Login);
    if (refused)
        return refused;
    uint64_t limit = user == CKU_USER ? control->pin_limit : 0;
    if (limit && control->pin_failures >= limit)
        return leave(CKR_PIN_LOCKED);
    W result = REAL(Login, 4)(session, user, pin, length);
    if (limit && result == CKR_PIN_INCORRECT)
        __atomic_add_fetch(&control->pin_failures, 1, __ATOMIC_SEQ_CST);
    if (limit && result == CKR_OK)
        control->pin_failures = 0;
    return leave(result);
}

enum { IV_BYTES = 16, OPERATIONS = 256 };

/* Encryptions under way whose IV is ours. */
static struct operation {
    int is_used;
    W session;
    unsigned char iv[IV_BYTES];
} operations[OPERATIONS];
static pthread_mutex_t operations_lock = PTHREAD_MUTEX_INITIALIZER;

/* The session's operation, or a new one; NULL when there is none. */
static struct operation *operation_of(W session, int is_new)
{
    struct operation *found = NULL;
    pthread_mutex_lock(&operations_lock);
    for (int i = 0; i < OPERATIONS && !found; i++)
        if (operations[i].is_used && operations[i].session == session)
            found = &operations[i];
    for (int i = 0; is_new && i < OPERATIONS && !found; i++)
        if (!operations[i].is_used)
            found = &operations[i];
    if (found && is_new) {
        found->is_used = 1;
        found->session = session;
    }
    pthread_mutex_unlock(&operations_lock);
    return found;
}

static void end(struct operation *operation)
{
    pthread_mutex_lock(&operations_lock);
    operation->is_used = 0;
    pthread_mutex_unlock(&operations_lock);
}

W C_EncryptInit(W session, W described, W key)
{
    W refused = enter(N_EncryptInit);
    if (refused)
        return refused;
    struct mechanism mechanism = *(struct mechanism *)described;
    if (control->gcm_iv == OF_THE_CALLER || mechanism.type != CKM_AES_GCM)
        return leave(REAL(EncryptInit, 3)(session, described, key));
    struct gcm gcm = *mechanism.parameter;
    if (control->gcm_iv == OF_THE_TOKEN && (gcm.iv || gcm.iv_bytes))
        return leave(CKR_MECHANISM_PARAM_INVALID);
    struct operation *operation = operation_of(session, 1);
    if (!operation || getrandom(operation->iv, IV_BYTES, 0) != IV_BYTES)
        return leave(CKR_GENERAL_ERROR);
    gcm.iv = operation->iv;
    gcm.iv_bytes = IV_BYTES;
    gcm.iv_bits = 8 * IV_BYTES;
    mechanism.parameter = &gcm;
    W result = REAL(EncryptInit, 3)(session, (W)&mechanism, key);
    if (result != CKR_OK)
        end(operation);
    return leave(result);
}

W C_Encrypt(W session, W data, W length, W output, W output_length)
{
    W refused = enter(N_Encrypt);
    if (refused)
        return refused;
    struct operation *operation = operation_of(session, 0);
    if (!operation)
        return leave(REAL(Encrypt, 5)(session, data, length, output, output_length));
    W *room = (W *)output_length, left = *room < IV_BYTES ? 0 : *room - IV_BYTES;
    W result = REAL(Encrypt, 5)(session, data, length, output, (W)&left);
    *room = left + IV_BYTES;
    if (result == CKR_OK && output)
        memcpy((unsigned char *)output + left, operation->iv, IV_BYTES);
    if (result != CKR_BUFFER_TOO_SMALL && output)
        end(operation);
    return leave(result);
}

#define ADDRESS(name, arity) (void *)C_##name,
static struct function_list ours = {2, 40, {FUNCTIONS(ADDRESS, ADDRESS, ADDRESS)}};

W C_GetFunctionList(W list)
{
    if (!real)
        return CKR_GENERAL_ERROR;
    control->functions[N_GetFunctionList].calls++;
    *(struct function_list **)list = &ours;
    return CKR_OK;
}

__attribute__((constructor)) static void load(void)
{
    const char *module = getenv("FAULTY_MODULE"), *path = getenv("FAULTY_CONTROL");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (!module || file < 0)
        return;
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    void *library = dlopen(module, RTLD_NOW | RTLD_LOCAL);
    W (*list)(void *) = library ? (W(*)(void *))dlsym(library, "C_GetFunctionList") : NULL;
    struct function_list *found;
    if (control != MAP_FAILED && list && list(&found) == CKR_OK)
        real = found;
}
