/* The traffic of highway-env, every frame of a decision in one call, bit for bit as its Python computes it.

   Each function names the Python that it repeats, operation by operation and in the same order. Sums and products are
   IEEE doubles and are never fused (-ffp-contract=off). Sines, powers and the like are numpy's own inner loops, handed
   in at the start: numpy's differ from libm's in their last bits. What is decided by a BLAS product in Python (whether
   two polygons overlap) is decided here only where it is clear by more than CLEAR; the rest, and choosing the next
   road, is asked of highway-env: `run` returns a question, and is called again with the answer.

   Sources of the models: IDM, Treiber, Hennecke and Helbing, Physical Review E 62 (2000); MOBIL, Kesting, Treiber and
   Helbing, Transportation Research Record 1999 (2007); kinematic bicycle, Polack et al., IEEE IV 2017. */
#include <math.h>
#include <stdint.h>

#define PI 3.141592653589793
#define CLEAR 1e-7     /* m; rounding in highway-env's products is a millionth of this */
#define ROUTE 8        /* roads of a route that are looked at */
#define MOMENTS 11     /* of a predicted trajectory: np.arange(0.25, 3, 0.25) */
#define EXPORT __attribute__((visibility("default")))
#define SOURCE_VERSION 1 /* as in kernel.py; raised with every change of this file, so that no old build is used */

EXPORT int64_t source_version(void) { return SOURCE_VERSION; }

/* ---- numpy's inner loops, one element at a time */

typedef void (*loop_t)(char **, const intptr_t *, const intptr_t *, void *);
enum { SIN, COS, TAN, ARCTAN, ARCSIN, ARCTAN2, POWER, N_LOOPS };
static loop_t loops[N_LOOPS];
static void *loops_data[N_LOOPS];

EXPORT void set_loop(int which, void *function, void *data) { loops[which] = (loop_t)function; loops_data[which] = data; }

static inline double unary(int which, double x) {
  double result;
  char *arguments[2] = {(char *)&x, (char *)&result};
  intptr_t n = 1, strides[2] = {8, 8};
  loops[which](arguments, &n, strides, loops_data[which]);
  return result;
}

static inline double binary(int which, double x, double y) {
  double result;
  char *arguments[3] = {(char *)&x, (char *)&y, (char *)&result};
  intptr_t n = 1, strides[3] = {8, 8, 8};
  loops[which](arguments, &n, strides, loops_data[which]);
  return result;
}

static inline double remainder_of(double a, double b) {                                  /* Python's and numpy's % */
  double m = fmod(a, b);
  if (m == 0) return copysign(0, b);
  return (b < 0) != (m < 0) ? m + b : m;
}

static inline double wrap_to_pi(double x) { return remainder_of(x + PI, 2 * PI) - PI; }        /* utils.wrap_to_pi */
static inline double dot(double ax, double ay, double bx, double by) { return ax * bx + ay * by; }       /* np.dot */
static inline double norm(double x, double y) { return sqrt(x * x + y * y); }                    /* np.linalg.norm */
static inline double above_zero(double x) { return x > 0 ? x : 0; }

static inline double clip(double x, double low, double high) {                                          /* np.clip */
  x = x < low ? low : x;
  return x > high ? high : x;
}

static inline double not_zero(double x) { return fabs(x) > 1e-2 ? x : (x >= 0 ? 1e-2 : -1e-2); }  /* utils.not_zero */

/* For the check at the start: what the kernel computes by itself, against numpy. */
EXPORT void primitives(const double *a, const double *b, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++, out += N_LOOPS + 5) {
    for (int k = 0; k < ARCTAN2; k++) out[k] = unary(k, a[i]);
    out[ARCTAN2] = binary(ARCTAN2, a[i], b[i]);
    out[POWER] = binary(POWER, fabs(a[i]), b[i]);
    out[N_LOOPS] = wrap_to_pi(b[i]);
    out[N_LOOPS + 1] = dot(a[i], b[i], b[i], a[n - 1 - i]);
    out[N_LOOPS + 2] = norm(a[i], b[i]);
    out[N_LOOPS + 3] = b[i] * b[i];
    out[N_LOOPS + 4] = clip(b[i], -1, 1);
  }
}

/* ---- what Python packs: all members are 8 bytes wide */

enum { STRAIGHT, CIRCULAR, SINE };
typedef struct {                                                                          /* highway_env.road.lane */
  double kind, x, y;                             /* start of a straight lane, centre of a circular one */
  double along_x, along_y, across_x, across_y;   /* direction, direction_lateral */
  double heading, length, width, limit, forbidden, priority;                            /* limit: NaN for None */
  double radius, phase, turn;                    /* CircularLane: radius, start_phase, direction */
  double amplitude, pulsation;                   /* SineLane, with phase */
  double road, id, siblings;                     /* which road it is of, its place there, lanes of that road */
} Lane;

enum { IDM, MDP, PLAIN, OBSTACLE };              /* IDMVehicle, MDPVehicle, Vehicle, Obstacle */
typedef struct {
  double x, y, heading, speed, target_speed, timer, steering, acceleration, delta, impact_x, impact_y;
  double length, width, diagonal, max_speed, min_speed, cos, sin;
  int64_t kind, lane, target_lane, crashed, impact, checks, collidable, changes_lanes, yielding;
  int64_t yielded, speed_from, timer_reset, limited;     /* told back: see frames.py */
  int64_t n_route, preferred, route[ROUTE];              /* preferred: the lane's number in route[0]; -1 for None */
} Entity;

typedef struct {                                          /* class constants of the vehicles, the lanes' car, the step */
  double acc_max, comfort_max, comfort_min, distance_wanted, time_wanted, politeness, min_gain, max_braking, delay;
  double kp_a, kp_heading, kp_lateral, tau_pursuit, max_steering, car, dt;
} Settings;

typedef struct {
  int64_t n, n_all, n_lanes, frames;             /* vehicles; with the obstacles behind them */
  int64_t phase, i, j, answer, fresh;            /* where it stands: 0 at first, fresh 1 */
  int64_t regulated, steps, every;               /* RegulatedRoad.steps; frames between enforcements of its rules */
} Control;

typedef struct {                                 /* everything, for the functions below */
  Entity *entity;
  const Lane *lane;
  const Settings *set;
  const int64_t *search_from, *search_lane;      /* lanes looked at for neighbours on lane l: from[l] to from[l + 1] */
  const double *search_offset;
  double *along, *across;                        /* [entity, lane]: local coordinates */
  double *path_x, *path_y, *path_heading;        /* [entity, moment] */
  int64_t n, n_all, n_lanes;
} World;

EXPORT int64_t layout(int what) {
  return what == 0 ? sizeof(Lane) : what == 1 ? sizeof(Entity) : what == 2 ? sizeof(Settings) : sizeof(Control);
}

#define ALONG(i, l) w->along[(i) * w->n_lanes + (l)]
#define ACROSS(i, l) w->across[(i) * w->n_lanes + (l)]

/* ---- lane geometry: the methods of StraightLane, CircularLane and SineLane */

static inline double sine_offset(const Lane *l, double along) {
  return l->amplitude * unary(SIN, l->pulsation * along + l->phase);
}

static inline void local_coordinates(const Lane *l, double x, double y, double *along, double *across) {
  double dx = x - l->x, dy = y - l->y;
  if (l->kind == CIRCULAR) {
    double phi = binary(ARCTAN2, dy, dx);
    phi = l->phase + wrap_to_pi(phi - l->phase);
    *along = l->turn * (phi - l->phase) * l->radius;
    *across = l->turn * (l->radius - norm(dx, dy));
    return;
  }
  *along = dot(dx, dy, l->along_x, l->along_y);
  *across = dot(dx, dy, l->across_x, l->across_y);
  if (l->kind == SINE) *across = *across - sine_offset(l, *along);
}

static inline double heading_at(const Lane *l, double along) {
  if (l->kind == CIRCULAR) return l->turn * along / l->radius + l->phase + PI / 2 * l->turn;
  if (l->kind == SINE)
    return l->heading + unary(ARCTAN, l->amplitude * l->pulsation * unary(COS, l->pulsation * along + l->phase));
  return l->heading;
}

static void position(const Lane *l, double along, double *x, double *y) {                /* lane.position(along, 0) */
  if (l->kind == CIRCULAR) {
    double phi = l->turn * along / l->radius + l->phase;
    *x = l->x + l->radius * unary(COS, phi);
    *y = l->y + l->radius * unary(SIN, phi);
    return;
  }
  double across = l->kind == SINE ? 0 + sine_offset(l, along) : 0;
  *x = l->x + along * l->along_x + across * l->across_x;
  *y = l->y + along * l->along_y + across * l->across_y;
}

static inline double distance_with_heading(const Lane *l, double along, double across, double heading) {
  double angle = fabs(wrap_to_pi(heading - heading_at(l, along)));
  return fabs(across) + above_zero(along - l->length) + above_zero(0 - along) + 1.0 * angle;
}

static inline int on_lane(const World *w, int i, int l, double margin) {
  double along = ALONG(i, l), car = w->set->car;
  return fabs(ACROSS(i, l)) <= w->lane[l].width / 2 + margin && -car <= along && along < w->lane[l].length + car;
}

static inline int is_reachable_from(const World *w, int i, int l) {
  double along = ALONG(i, l);
  return !w->lane[l].forbidden && fabs(ACROSS(i, l)) <= 2 * w->lane[l].width && 0 <= along
         && along < w->lane[l].length + w->set->car;
}

EXPORT int64_t closest_lane(const Lane *lane, int64_t n_lanes, double x, double y, double heading) {
  int64_t best = 0;
  double least = INFINITY;
  for (int64_t l = 0; l < n_lanes; l++) {
    double along, across;
    local_coordinates(&lane[l], x, y, &along, &across);
    double distance = distance_with_heading(&lane[l], along, across, heading);
    if (distance < least) { least = distance; best = l; }
  }
  return best;
}

EXPORT void coordinates(const Lane *l, const double *xy, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++) local_coordinates(l, xy[2 * i], xy[2 * i + 1], &out[2 * i], &out[2 * i + 1]);
}

/* The same for entities that each stand on a lane of their own. */
EXPORT void on_own_lanes(const Lane *lane, const int64_t *which, const double *xy, int64_t n, double *out) {
  for (int64_t i = 0; i < n; i++)
    local_coordinates(&lane[which[i]], xy[2 * i], xy[2 * i + 1], &out[2 * i], &out[2 * i + 1]);
}

static void look(World *w, int i, int find_lane) {           /* an entity's direction and lane coordinates, all lanes */
  Entity *e = &w->entity[i];
  e->cos = unary(COS, e->heading);
  e->sin = unary(SIN, e->heading);
  double least = INFINITY;
  int best = 0;
  for (int l = 0; l < w->n_lanes; l++) {
    local_coordinates(&w->lane[l], e->x, e->y, &ALONG(i, l), &ACROSS(i, l));
    if (!find_lane) continue;
    double distance = distance_with_heading(&w->lane[l], ALONG(i, l), ACROSS(i, l), e->heading);
    if (distance < least) { least = distance; best = l; }
  }
  if (find_lane) e->lane = best;
}

/* ---- Road.neighbour_vehicles: who is ahead and who behind on a lane; -1 for nobody */

static void neighbours(const World *w, int i, int l, int *front, int *rear) {
  double here = ALONG(i, l), nearest_front = 0, nearest_rear = 0;
  *front = *rear = -1;
  for (int k = 0; k < w->n_all; k++) {
    if (k == i) continue;
    for (int64_t m = w->search_from[l]; m < w->search_from[l + 1]; m++) {
      int on = w->search_lane[m];
      if (!on_lane(w, k, on, 1)) continue;
      double there = ALONG(k, on) + w->search_offset[m];
      if (here <= there && (*front < 0 || there <= nearest_front)) { nearest_front = there; *front = k; }
      if (there < here && (*rear < 0 || there > nearest_rear)) { nearest_rear = there; *rear = k; }
      break;                                                  /* matched on this lane, no need to check others */
    }
  }
}

/* ---- IDM: IDMVehicle.acceleration and .desired_gap */

static double desired_gap(const World *w, const Entity *e, const Entity *front) {
  const Settings *s = w->set;
  double ab = -s->comfort_max * s->comfort_min;
  double dvx = e->speed * e->cos - front->speed * front->cos, dvy = e->speed * e->sin - front->speed * front->sin;
  double dv = dot(dvx, dvy, e->cos, e->sin);
  return s->distance_wanted + e->speed * s->time_wanted + e->speed * dv / (2 * sqrt(ab));
}

static double acceleration(const World *w, int self, int ego, int front) {
  if (ego < 0 || w->entity[ego].kind == OBSTACLE) return 0;
  const Entity *e = &w->entity[ego];
  const Lane *l = &w->lane[e->lane];
  double target = isnan(l->limit) ? e->target_speed : clip(e->target_speed, 0, l->limit);
  double a = w->set->comfort_max
             * (1 - binary(POWER, above_zero(e->speed) / fabs(not_zero(target)), w->entity[self].delta));
  if (front >= 0) {
    double d = ALONG(front, e->lane) - ALONG(ego, e->lane);
    double share = desired_gap(w, e, &w->entity[front]) / not_zero(d);
    a -= w->set->comfort_max * (share * share);
  }
  return a;
}

/* ---- MOBIL: IDMVehicle.mobil and .change_lane_policy */

static inline int sign(double x) { return (x > 0) - (x < 0); }

static int mobil(const World *w, int i, int l) {
  const Settings *s = w->set;
  const Entity *e = &w->entity[i];
  int new_front, new_rear, old_front, old_rear;
  neighbours(w, i, l, &new_front, &new_rear);
  double new_rear_a = acceleration(w, i, new_rear, new_front), new_rear_pred_a = acceleration(w, i, new_rear, i);
  if (new_rear_pred_a < -s->max_braking) return 0;
  neighbours(w, i, e->lane, &old_front, &old_rear);
  double self_pred_a = acceleration(w, i, i, new_front);
  if (e->n_route && e->preferred >= 0) {                      /* a planned route for a lane: go there where it is safe */
    double target = w->lane[e->target_lane].id;
    return sign(w->lane[l].id - target) == sign(e->preferred - target) && !(self_pred_a < -s->max_braking);
  }
  double self_a = acceleration(w, i, i, old_front);
  double old_rear_a = acceleration(w, i, old_rear, i), old_rear_pred_a = acceleration(w, i, old_rear, old_front);
  double jerk = self_pred_a - self_a + s->politeness * (new_rear_pred_a - new_rear_a + old_rear_pred_a - old_rear_a);
  return !(jerk < s->min_gain);
}

static void change_lane_policy(World *w, int i) {
  Entity *e = &w->entity[i];
  if (e->lane != e->target_lane) {                            /* under way: give it up for somebody who is nearer */
    if (w->lane[e->lane].road != w->lane[e->target_lane].road) return;
    for (int k = 0; k < w->n; k++) {
      const Entity *o = &w->entity[k];
      if (k == i || o->kind == PLAIN || o->lane == e->target_lane || o->target_lane != e->target_lane) continue;
      double d = ALONG(k, e->lane) - ALONG(i, e->lane), wanted = desired_gap(w, e, o);
      if (0 < d && d < wanted) { e->target_lane = e->lane; break; }
    }
    return;
  }
  if (!(w->set->delay < e->timer)) return;
  e->timer = 0;
  e->timer_reset = 1;
  const Lane *here = &w->lane[e->lane];
  for (int side = -1; side <= 1; side += 2) {                 /* RoadNetwork.side_lanes: left, then right */
    if (side < 0 ? here->id == 0 : here->id == here->siblings - 1) continue;
    int l = (int)(here - w->lane) + side;
    if (is_reachable_from(w, i, l) && !(fabs(e->speed) < 1) && mobil(w, i, l)) e->target_lane = l;
  }
}

/* ---- control: ControlledVehicle.steering_control, and the bicycle of Vehicle.step */

static double steering_control(const World *w, int i) {
  const Entity *e = &w->entity[i];
  const Settings *s = w->set;
  const Lane *l = &w->lane[e->target_lane];
  double future_heading = heading_at(l, ALONG(i, e->target_lane) + e->speed * s->tau_pursuit);
  double lateral_speed = -s->kp_lateral * ACROSS(i, e->target_lane);
  double heading_command = unary(ARCSIN, clip(lateral_speed / not_zero(e->speed), -1, 1));
  double heading_ref = future_heading + clip(heading_command, -PI / 4, PI / 4);
  double heading_rate = s->kp_heading * wrap_to_pi(heading_ref - e->heading);
  double slip = unary(ARCSIN, clip(e->length / 2 / not_zero(e->speed) * heading_rate, -1, 1));
  return clip(unary(ARCTAN, 2 * unary(TAN, slip)), -s->max_steering, s->max_steering);
}

static void decide(World *w, int i) {                         /* IDMVehicle.act and MDPVehicle.act, the road followed */
  Entity *e = &w->entity[i];
  if (e->kind == MDP) {
    e->steering = steering_control(w, i);
    e->acceleration = w->set->kp_a * (e->target_speed - e->speed);
    return;
  }
  if (e->changes_lanes) change_lane_policy(w, i);
  e->steering = steering_control(w, i);
  int front, rear;
  neighbours(w, i, e->lane, &front, &rear);
  double a = acceleration(w, i, i, front);
  if (e->lane != e->target_lane) {
    neighbours(w, i, e->target_lane, &front, &rear);
    double on_target = acceleration(w, i, i, front);
    if (on_target < a) a = on_target;
  }
  e->acceleration = clip(a, -w->set->acc_max, w->set->acc_max);
}

static void move(World *w, int i) {                           /* IDMVehicle.step, Vehicle.step and .clip_actions */
  Entity *e = &w->entity[i];
  double dt = w->set->dt;
  if (e->kind == IDM) e->timer += dt;
  if (e->crashed) { e->steering = 0; e->acceleration = -1.0 * e->speed; }
  e->limited = 0;
  if (e->speed > e->max_speed) {
    double most = 1.0 * (e->max_speed - e->speed);
    if (most < e->acceleration) { e->acceleration = most; e->limited = 1; }
  } else if (e->speed < e->min_speed) {
    double least = 1.0 * (e->min_speed - e->speed);
    if (least > e->acceleration) { e->acceleration = least; e->limited = 1; }
  }
  double beta = unary(ARCTAN, 0.5 * unary(TAN, e->steering));
  e->x += e->speed * unary(COS, e->heading + beta) * dt;
  e->y += e->speed * unary(SIN, e->heading + beta) * dt;
  if (e->impact) { e->x += e->impact_x; e->y += e->impact_y; e->crashed = 1; e->impact = 0; }
  e->heading += e->speed * unary(SIN, beta) / (e->length / 2) * dt;
  e->speed += e->acceleration * dt;
  look(w, i, 1);
}

/* ---- right of way: RegulatedRoad.enforce_road_rules */

static void predict(World *w, int i) {        /* ControlledVehicle.predict_trajectory_constant_speed, at MOMENTS */
  const Entity *e = &w->entity[i];
  double from = ALONG(i, e->lane);
  for (int k = 0; k < MOMENTS; k++) {
    double along = from + e->speed * (0.25 * (k + 1));
    const int64_t *road = e->n_route ? e->route : &e->lane;
    int left = e->n_route ? (int)e->n_route : 1;
    while (left > 1 && along > w->lane[*road].length) { along -= w->lane[*road].length; road++; left--; }
    position(&w->lane[*road], along, &w->path_x[i * MOMENTS + k], &w->path_y[i * MOMENTS + k]);
    w->path_heading[i * MOMENTS + k] = heading_at(&w->lane[*road], along);
  }
}

enum { NO, UNSURE, YES };

/* utils.has_corner_inside: corners, middles of the sides and centre of one rectangle in another. */
static int has_corner_inside(double x1, double y1, double h1, double half_l1, double half_w1, double x2, double y2,
                             double h2, double half_l2, double half_w2) {
  static const double ahead[9] = {-1, -1, 1, 1, 0, -1, 1, 0, 0}, aside[9] = {-1, 1, 1, -1, 0, 0, 0, -1, 1};
  double c1 = cos(h1), s1 = sin(h1), c2 = cos(h2), s2 = sin(h2);
  int found = NO;
  for (int k = 0; k < 9; k++) {
    double px = ahead[k] * half_l1, py = aside[k] * half_w1;
    double x = c1 * px - s1 * py + x1 - x2, y = s1 * px + c1 * py + y1 - y2;
    double in_l = half_l2 - fabs(c2 * x - s2 * y), in_w = half_w2 - fabs(s2 * x + c2 * y);
    double in = in_l < in_w ? in_l : in_w;
    if (in > CLEAR) return YES;
    if (in > -CLEAR) found = UNSURE;
  }
  return found;
}

static int is_conflict_possible(const World *w, int i, int j) {
  const Entity *a = &w->entity[i], *b = &w->entity[j];
  for (int k = 0; k < MOMENTS; k++) {
    int p = i * MOMENTS + k, q = j * MOMENTS + k;
    double x1 = w->path_x[p], y1 = w->path_y[p], h1 = w->path_heading[p];
    double x2 = w->path_x[q], y2 = w->path_y[q], h2 = w->path_heading[q];
    if (norm(x2 - x1, y2 - y1) > a->length) continue;
    double l1 = 1.5 * a->length / 2, w1 = 0.9 * a->width / 2, l2 = 1.5 * b->length / 2, w2 = 0.9 * b->width / 2;
    int one = has_corner_inside(x1, y1, h1, l1, w1, x2, y2, h2, l2, w2);
    int other = one == YES ? NO : has_corner_inside(x2, y2, h2, l2, w2, x1, y1, h1, l1, w1);
    if (one == YES || other == YES) return YES;
    if (one == UNSURE || other == UNSURE) return UNSURE;
  }
  return NO;
}

static int respect_priorities(const World *w, int i, int j) {                                  /* who should yield */
  const Entity *a = &w->entity[i], *b = &w->entity[j];
  double first = w->lane[a->lane].priority, second = w->lane[b->lane].priority;
  if (first != second) return first > second ? j : i;
  double a_to_b = dot(a->cos, a->sin, b->x - a->x, b->y - a->y), b_to_a = dot(b->cos, b->sin, a->x - b->x, a->y - b->y);
  return a_to_b > b_to_a ? i : j;
}

static void release(World *w, int i) {                                          /* of those who yielded until now */
  Entity *e = &w->entity[i];
  if (!e->yielding) return;
  e->target_speed = w->lane[e->lane].limit;
  e->speed_from = e->lane;
  e->yielding = 0;
}

/* ---- collisions: RoadObject.handle_collisions and utils.are_polygons_intersecting */

static int apart(const World *w, const Entity *a, const Entity *b) {     /* surely neither touching nor about to */
  int now = 0, soon = 0;
  double rx = b->x - a->x, ry = b->y - a->y, dt = w->set->dt;
  double wx = (a->speed * a->cos - b->speed * b->cos) * dt, wy = (a->speed * a->sin - b->speed * b->sin) * dt;
  for (int k = 0; k < 4; k++) {                                          /* the separating axes: sides of both */
    const Entity *o = k < 2 ? a : b;
    double nx = k & 1 ? -o->sin : o->cos, ny = k & 1 ? o->cos : o->sin;
    double reach_a = a->length / 2 * fabs(nx * a->cos + ny * a->sin) + a->width / 2 * fabs(-nx * a->sin + ny * a->cos);
    double reach_b = b->length / 2 * fabs(nx * b->cos + ny * b->sin) + b->width / 2 * fabs(-nx * b->sin + ny * b->cos);
    double d = nx * rx + ny * ry, closing = nx * wx + ny * wy;
    if (d < 0) { d = -d; closing = -closing; }
    now |= d - reach_a - reach_b > CLEAR;
    soon |= d - reach_a - reach_b - above_zero(closing) > CLEAR;
  }
  return now && soon;
}

static int may_collide(const World *w, int i, int j) {
  const Entity *a = &w->entity[i], *b = &w->entity[j];
  if (!(a->checks || b->checks) || !(a->collidable && b->collidable)) return 0;
  if (norm(b->x - a->x, b->y - a->y) > (a->diagonal + b->diagonal) / 2 + a->speed * w->set->dt) return 0;
  return !apart(w, a, b);
}

/* ---- what is measured: `Encounter.of` of rlmech.simulators.highway.measures, of the first rectangle with each other */

typedef struct { double x, y, cos, sin, vx, vy, length, width; } Rectangle;
typedef struct {
  double dx, dy, closing, ttc;
  double n_near, near[8][2];       /* corners that may be nearest to the other rectangle: hypot is left to Python */
} Meeting;

static void corners(double x, double y, double h, double w, double cos, double sin, double to_h, double to_w,
                    double (*out)[2]) {
  for (int k = 0; k < 4; k++) {
    double along = k < 2 ? h : -h, across = k & 1 ? -w : w;
    out[k][0] = above_zero(fabs(x + cos * along - sin * across) - to_h);
    out[k][1] = above_zero(fabs(y + sin * along + cos * across) - to_w);
  }
}

static void keep_nearest(Meeting *m) {            /* of the eight, those that rounding could make the nearest */
  double square[8], least = INFINITY;
  for (int k = 0; k < 8; k++) {
    square[k] = m->near[k][0] * m->near[k][0] + m->near[k][1] * m->near[k][1];
    if (square[k] < least) least = square[k];
  }
  int n = 0;
  for (int k = 0; k < 8; k++) {
    if (square[k] > least * (1 + 1e-12)) continue;
    m->near[n][0] = m->near[k][0];
    m->near[n++][1] = m->near[k][1];
  }
  m->n_near = n;
}

static double first_overlap(const double *offset, const double *speed, const double *reach) {
  double first = 0, last = INFINITY;
  for (int k = 0; k < 4; k++) {
    if (fabs(speed[k]) < 1e-9) {                              /* measures.RELATIVE_REST */
      if (fabs(offset[k]) > reach[k]) return INFINITY;
      continue;
    }
    double middle = -offset[k] / speed[k], half = reach[k] / fabs(speed[k]);
    if (middle - half > first) first = middle - half;
    if (middle + half < last) last = middle + half;
    if (first > last) return INFINITY;
  }
  return first;
}

EXPORT void encounters(const Rectangle *r, int64_t n, Meeting *out) {
  double c1 = r->cos, s1 = r->sin, h1 = r->length / 2, w1 = r->width / 2;
  for (int64_t i = 1; i < n; i++) {
    Meeting *m = &out[i];
    const Rectangle *o = &r[i];
    double dx = o->x - r->x, dy = o->y - r->y, dvx = o->vx - r->vx, dvy = o->vy - r->vy;
    double c2 = o->cos, s2 = o->sin, h2 = o->length / 2, w2 = o->width / 2;
    double turn_cos = c1 * c2 + s1 * s2, turn_sin = c1 * s2 - s1 * c2;
    double parallel = fabs(turn_cos), square = fabs(turn_sin);
    double offsets[4] = {dx * c1 + dy * s1, dy * c1 - dx * s1, dx * c2 + dy * s2, dy * c2 - dx * s2};
    double speeds[4] = {dvx * c1 + dvy * s1, dvy * c1 - dvx * s1, dvx * c2 + dvy * s2, dvy * c2 - dvx * s2};
    double reaches[4] = {h1 + parallel * h2 + square * w2, w1 + square * h2 + parallel * w2,
                         h2 + parallel * h1 + square * w1, w2 + square * h1 + parallel * w1};
    int overlap = 1;
    for (int k = 0; k < 4; k++) overlap &= fabs(offsets[k]) <= reaches[k];
    m->dx = dx, m->dy = dy;
    m->closing = -(dx * dvx + dy * dvy);
    m->ttc = first_overlap(offsets, speeds, reaches);
    m->n_near = 0;
    if (overlap) continue;
    corners(offsets[0], offsets[1], h2, w2, turn_cos, turn_sin, h1, w1, m->near);
    corners(-offsets[2], -offsets[3], h1, w1, turn_cos, -turn_sin, h2, w2, m->near + 4);
    keep_nearest(m);
  }
}

/* ---- the frames: Road.act and Road.step, as often as asked for */

enum { ACT, REGULATE, RULES, MOVE, COLLIDE };
enum { DONE, FOLLOW_ROAD, IS_CONFLICT_POSSIBLE, HANDLE_COLLISIONS };     /* what is asked of highway-env, of i and j */

EXPORT int64_t run(Control *c, Entity *entity, const Lane *lane, const Settings *set, const int64_t *search_from,
                   const int64_t *search_lane, const double *search_offset, double *scratch) {
  int64_t cells = c->n_all * c->n_lanes, path = c->n_all * MOMENTS;
  World world = {entity, lane, set, search_from, search_lane, search_offset, scratch, scratch + cells,
                 scratch + 2 * cells, scratch + 2 * cells + path, scratch + 2 * cells + 2 * path,
                 c->n, c->n_all, c->n_lanes};
  World *w = &world;
  if (c->fresh) for (int i = 0; i < c->n_all; i++) look(w, i, 0);
  c->fresh = 0;
  for (;;) {
    if (c->phase == ACT) {
      for (; c->i < c->n; c->i++) {
        Entity *e = &entity[c->i];
        if (e->kind == PLAIN || (e->kind == IDM && e->crashed)) continue;
        if (!c->answer && ALONG(c->i, e->target_lane) > lane[e->target_lane].length - set->car / 2) return FOLLOW_ROAD;
        c->answer = 0;
        decide(w, (int)c->i);
      }
      c->phase = REGULATE;
    }
    if (c->phase == REGULATE) {
      c->steps++;
      c->i = 0, c->j = 1;
      c->phase = c->regulated && c->steps % c->every == 0 ? RULES : MOVE;
      if (c->phase == RULES) for (int i = 0; i < c->n; i++) { release(w, i); predict(w, i); }
    }
    if (c->phase == RULES) {
      for (; c->i < c->n - 1; c->i++, c->j = c->i + 1)
        for (; c->j < c->n; c->j++) {
          int conflict = c->answer ? (int)c->answer - 1 : is_conflict_possible(w, (int)c->i, (int)c->j);
          c->answer = 0;
          if (conflict == UNSURE) return IS_CONFLICT_POSSIBLE;
          if (conflict == NO) continue;
          Entity *yields = &entity[respect_priorities(w, (int)c->i, (int)c->j)];
          if (yields->kind != IDM) continue;
          yields->target_speed = 0;
          yields->speed_from = -2;
          yields->yielding = yields->yielded = 1;
        }
      c->phase = MOVE;
    }
    if (c->phase == MOVE) {
      for (int i = 0; i < c->n; i++) move(w, i);
      c->phase = COLLIDE, c->i = 0, c->j = 1;
    }
    for (; c->i < c->n; c->i++, c->j = c->i + 1)
      for (; c->j < c->n_all; c->j++) {
        if (!c->answer && may_collide(w, (int)c->i, (int)c->j)) return HANDLE_COLLISIONS;
        c->answer = 0;
      }
    c->phase = ACT, c->i = 0, c->j = 1;
    if (--c->frames <= 0) return DONE;
  }
}
