/* A stand-in for libnvidia-ml.so.1 with the part of its ABI that a reader of GPUs uses.
 *
 * It answers from the plain-text file named by NVML_STUB_STATE, read again at each call, so that one test can
 * change the GPUs of many processes while they run. tests/support/nvml.py writes the file and names its words.
 *
 * Compile with -DOLD_DRIVER for a library that lacks the v2 memory and v3 process calls.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define UNKNOWN 999

#define MAX_GPUS 16
#define MAX_PIDS 64

typedef unsigned long long u64;

typedef struct {
    char name[96], uuid[96];
    u64 total, used, reserved;
    int error, utilization, utilization_error, temperature, temperature_error, power, major, minor;
    int pids_error, pid_count;
    int mig_mode, mig_of; /* an instance is a GPU that stands after all whole ones; mig_of is -1 for those */
    unsigned pids[MAX_PIDS];
} Gpu;

typedef struct {
    char driver[80];
    int init_error, hang, crash, session, gpu_count;
    Gpu gpus[MAX_GPUS];
} State;

typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory_v2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } ProcessInfo;

/* The driver's session when this process opened NVML: another number in the file means that it was reloaded. */
static int opened_session = -1;

static int is_alive(int pid) {
    char path[64], status = 'Z';
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    if (fscanf(file, "%*d (%*[^)]) %c", &status) != 1) status = 'Z';
    fclose(file);
    return status != 'Z' && status != 'X';
}

static void read_state(State *state) {
    memset(state, 0, sizeof *state);
    state->init_error = UNKNOWN;
    const char *path = getenv("NVML_STUB_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return;
    state->init_error = 0;
    Gpu *gpu = NULL;
    char line[1024], key[32];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        int at = 0;
        if (sscanf(line, "%31s %n", key, &at) < 1) continue;
        const char *value = line + at;
        if (!strcmp(key, "gpu")) {
            if (state->gpu_count == MAX_GPUS) break;
            gpu = &state->gpus[state->gpu_count++];
            gpu->mig_of = -1;
        } else if (!strcmp(key, "driver")) snprintf(state->driver, sizeof state->driver, "%s", value);
        else if (!strcmp(key, "init_error")) state->init_error = atoi(value);
        else if (!strcmp(key, "session")) state->session = atoi(value);
        else if (!strcmp(key, "hang")) state->hang = atoi(value);
        else if (!strcmp(key, "crash")) state->crash = atoi(value);
        else if (!gpu) continue;
        else if (!strcmp(key, "name")) snprintf(gpu->name, sizeof gpu->name, "%s", value);
        else if (!strcmp(key, "uuid")) snprintf(gpu->uuid, sizeof gpu->uuid, "%s", value);
        else if (!strcmp(key, "total")) gpu->total = strtoull(value, NULL, 10);
        else if (!strcmp(key, "used")) gpu->used += strtoull(value, NULL, 10);
        else if (!strcmp(key, "reserved")) gpu->reserved = strtoull(value, NULL, 10);
        else if (!strcmp(key, "error")) gpu->error = atoi(value);
        else if (!strcmp(key, "utilization")) gpu->utilization = atoi(value);
        else if (!strcmp(key, "utilization_error")) gpu->utilization_error = atoi(value);
        else if (!strcmp(key, "temperature")) gpu->temperature = atoi(value);
        else if (!strcmp(key, "temperature_error")) gpu->temperature_error = atoi(value);
        else if (!strcmp(key, "power")) gpu->power = atoi(value);
        else if (!strcmp(key, "compute_capability")) sscanf(value, "%d %d", &gpu->major, &gpu->minor);
        else if (!strcmp(key, "mig_mode")) gpu->mig_mode = atoi(value);
        else if (!strcmp(key, "mig_of")) gpu->mig_of = atoi(value);
        else if (!strcmp(key, "pids_error")) gpu->pids_error = atoi(value);
        else if (!strcmp(key, "pid") && gpu->pid_count < MAX_PIDS) gpu->pids[gpu->pid_count++] = atoi(value);
        else if (!strcmp(key, "hold")) {
            int pid = 0, listed = 0;
            u64 bytes = 0;
            sscanf(value, "%d %llu %d", &pid, &bytes, &listed);
            if (!is_alive(pid)) continue;
            gpu->used += bytes;
            if (listed && gpu->pid_count < MAX_PIDS) gpu->pids[gpu->pid_count++] = pid;
        }
    }
    fclose(file);
    if (state->hang) {
        char mark[4096];
        snprintf(mark, sizeof mark, "%s.hung", path);
        if ((file = fopen(mark, "w"))) fclose(file);
        for (;;) pause();
    }
    if (state->crash) raise(SIGSEGV);
}

static int enter(State *state) {
    read_state(state);
    return opened_session == state->session ? SUCCESS : UNINITIALIZED;
}

static int enter_gpu(State *state, void *device, Gpu **gpu) {
    int code = enter(state);
    if (code) return code;
    long index = (long)device - 1;
    if (index < 0 || index >= state->gpu_count) return INVALID_ARGUMENT;
    *gpu = &state->gpus[index];
    return (*gpu)->error;
}

static int put(const char *text, char *buffer, unsigned size) {
    if (strlen(text) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    State state;
    (void)flags;
    read_state(&state);
    if (!state.init_error) opened_session = state.session;
    return state.init_error;
}

int nvmlShutdown(void) {
    State state;
    int code = enter(&state);
    opened_session = -1;
    return code;
}

const char *nvmlErrorString(int code) {
    static char text[48];
    snprintf(text, sizeof text, "stub error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    State state;
    int code = enter(&state);
    return code ? code : put(state.driver, version, size);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    State state;
    int code = enter(&state);
    *count = 0;
    for (int i = 0; i < state.gpu_count; i++) *count += state.gpus[i].mig_of < 0;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    State state;
    Gpu *gpu;
    *device = (void *)((long)index + 1);
    return enter_gpu(&state, *device, &gpu);
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    return code ? code : put(gpu->uuid, uuid, size);
}

int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    return code ? code : put(gpu->name, name, size);
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    memory->total = gpu->total;
    memory->used = gpu->used + gpu->reserved;
    memory->free = gpu->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, Utilization *utilization) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    if (gpu->mig_of >= 0) return NOT_SUPPORTED;
    utilization->gpu = gpu->utilization;
    utilization->memory = 0;
    return gpu->utilization_error;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *temperature) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    if (sensor != 0 || gpu->mig_of >= 0) return INVALID_ARGUMENT;
    *temperature = gpu->temperature;
    return gpu->temperature_error;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    if (gpu->mig_of >= 0) return INVALID_ARGUMENT;
    *milliwatts = gpu->power;
    return gpu->power ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    if (gpu->mig_of >= 0) return INVALID_ARGUMENT;
    *major = gpu->major;
    *minor = gpu->minor;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, ProcessInfo *processes) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    if (gpu->pids_error) return gpu->pids_error;
    unsigned room = *count;
    *count = gpu->pid_count;
    if (room < *count) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++) {
        memset(&processes[i], 0, sizeof processes[i]);
        processes[i].pid = gpu->pids[i];
    }
    return SUCCESS;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    *current = *pending = gpu->mig_mode;
    return gpu->mig_mode ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) {
    State state;
    Gpu *gpu;
    *count = 7;
    return enter_gpu(&state, device, &gpu);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **instance) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    for (int i = 0; i < state.gpu_count; i++) {
        if (&state.gpus[state.gpus[i].mig_of < 0 ? i : state.gpus[i].mig_of] != gpu || state.gpus[i].mig_of < 0) continue;
        if (index-- == 0) {
            *instance = (void *)((long)i + 1);
            return state.gpus[i].error;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, ProcessInfo *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v2(device, count, processes);
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory_v2 *memory) {
    State state;
    Gpu *gpu;
    int code = enter_gpu(&state, device, &gpu);
    if (code) return code;
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    memory->total = gpu->total;
    memory->reserved = gpu->reserved;
    memory->used = gpu->used;
    memory->free = gpu->total - gpu->used - gpu->reserved;
    return SUCCESS;
}
#endif
